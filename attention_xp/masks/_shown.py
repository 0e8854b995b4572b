"""How masks are looked at: as an array, as a share of all pairs, as a picture."""

from attention_xp._typing import Array, Device, DType, Namespace
from attention_xp.masks._drawing import density, drawn, pictured, to_array
from attention_xp.masks._pairs import Pairs

__all__ = ["Shown"]


class Shown(Pairs):
    """What a mask shows of itself outside of attention."""

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
