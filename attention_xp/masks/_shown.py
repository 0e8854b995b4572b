"""The methods of masks outside of attention: arrays, density, pictures, and questions about ranges."""

from typing import Any, overload

from attention_xp._typing import Array, Device, DType, Namespace
from attention_xp.masks._drawing import any_allowed, density, drawn, pictured, to_array
from attention_xp.masks._pairs import Pairs

__all__ = ["Shown"]


class Shown(Pairs):
    """A mask with the methods that show it outside of attention."""

    def to_array(
        self,
        Sq: int,
        Sk: int,
        query_offset: int = 0,
        *,
        xp: Namespace | None = None,
        device: Device | None = None,
        dtype: DType | str = "bool",
    ) -> Array:
        """Return the mask as an array.

        Parameters
        ----------
        Sq, Sk : int
            Number of queries and keys.
        query_offset : int, default: 0
            Position of the first query.
        xp : module, optional
            The array library, such as ``cupy``, ``torch`` or ``jax.numpy``. Default: the library of the arrays
            that the mask holds, NumPy where it holds none.
        device : device, optional
            Where to place the array. Default: where the arrays of the mask lie, else the default device of `xp`.
        dtype : dtype or str, default: "bool"
            ``"bool"`` (True keeps), or a floating dtype for an additive mask (0 keeps, ``-inf`` excludes).

        Returns
        -------
        array
            ``(Sq, Sk)``, or ``(B, H, Sq, Sk)`` with axes of length 1 where the mask depends on batch or head.

        Raises
        ------
        TypeError
            If a size or the offset is no int, or the mask holds arrays of another library than `xp`.
        ValueError
            If a size is negative, or `dtype` is neither floating nor boolean.

        Examples
        --------
        >>> from attention_xp.masks import CausalMask
        >>> CausalMask().to_array(2, 4, query_offset=2, dtype="float32")
        array([[  0.,   0.,   0., -inf],
               [  0.,   0.,   0.,   0.]], dtype=float32)
        """
        return to_array(self, Sq, Sk, query_offset, xp, device, dtype)

    def density(self, Sq: int, Sk: int, query_offset: int = 0) -> float:
        """Return the exact share of allowed pairs, over all batch items and heads that the mask depends on.

        Parameters
        ----------
        Sq, Sk : int
            Number of queries and keys.
        query_offset : int, default: 0
            Position of the first query.

        Returns
        -------
        float
            Between 0 and 1; 0 where there are no pairs.

        Raises
        ------
        TypeError
            If a size or the offset is no int.
        ValueError
            If a size is negative.

        Notes
        -----
        The pairs are counted on the host with NumPy, and only in blocks that `reach` cannot decide.

        Examples
        --------
        >>> from attention_xp.masks import CausalMask
        >>> CausalMask().density(4, 4)
        0.625
        """
        return density(self, Sq, Sk, query_offset)

    @overload
    def any_allowed(
        self, rows: tuple[int, int], keys: tuple[int, int], *, query_offset: int = 0, key_offset: int = 0
    ) -> bool: ...
    @overload
    def any_allowed(
        self, rows: tuple[Any, Any], keys: tuple[Any, Any], *, query_offset: Any = 0, key_offset: Any = 0
    ) -> Any: ...
    def any_allowed(
        self, rows: tuple[Any, Any], keys: tuple[Any, Any], *, query_offset: Any = 0, key_offset: Any = 0
    ) -> Any:
        """Return whether a pair of some rows and some keys is allowed, in any batch item and head.

        Parameters
        ----------
        rows, keys : pair of int
            ``(start, stop)``: the rows of the query and the keys, from the first to the one before `stop`.
        query_offset, key_offset : int, default: 0
            Positions of row 0 and of key 0.

        Returns
        -------
        bool
            Exact: where `reach` cannot decide a block, its pairs are looked at, on the host with NumPy. False for no
            rows or no keys. A function that may depend on batch items and heads, whose numbers were not announced, is
            taken to allow what its `reach` does not exclude. Where a bound or an offset is an integer array, such as the number of a device inside
            ``jax.shard_map``, a boolean array: the answer of `reach`, which is True where nothing is known.

        Raises
        ------
        TypeError
            If `rows` or `keys` is no pair, or a number no int.
        ValueError
            If a bound is negative, or a pair has another length than two.

        Examples
        --------
        >>> from attention_xp.masks import CausalMask, WindowMask
        >>> mask = CausalMask() & WindowMask(3, None)
        >>> mask.any_allowed((8, 16), (0, 5)), mask.any_allowed((8, 16), (0, 6))
        (False, True)
        """
        return any_allowed(self, rows, keys, query_offset, key_offset)

    def draw(self, Sq: int, Sk: int, query_offset: int = 0) -> str:
        """Return a picture of the mask in characters, of the first batch item and head.

        Parameters
        ----------
        Sq, Sk : int
            Number of queries, from top to bottom, and of keys, from left to right. Beyond 32 of either, a character
            stands for several.
        query_offset : int, default: 0
            Position of the first query.

        Returns
        -------
        str
            A title and a line for each row of characters: ``█`` where all pairs are allowed, ``▒`` where some are,
            ``·`` where none is; ``#``, ``+`` and ``.`` where the standard output cannot show these.

        Raises
        ------
        TypeError
            If a size or the offset is no int.
        ValueError
            If a size is negative.

        Examples
        --------
        >>> from attention_xp.masks import CausalMask
        >>> print(CausalMask().draw(3, 4))
        CausalMask(): 3 queries x 4 keys
        █···
        ██··
        ███·
        """
        return drawn(self, (Sq, Sk), query_offset)

    def __str__(self) -> str:
        return self.draw(*self.extent)

    def _repr_html_(self) -> str:
        """Return a picture for notebooks."""
        return pictured(self)
