"""Sparse patterns from the literature, made of the rules."""

from typing import TYPE_CHECKING, Any

from attention_xp._checks.numbers import check_count, check_window
from attention_xp._typing import Array
from attention_xp.masks._flag_rules import BlockMask, GlobalMask
from attention_xp.masks._mask import Mask
from attention_xp.masks._position_rules import CausalMask, LastOfChunk, SameChunk, StridedMask, WindowMask

if TYPE_CHECKING:
    import numpy as np

__all__ = ["bigbird_mask", "longformer_mask", "sparse_transformer_mask"]


def longformer_mask(window: int | tuple[int | None, int | None], is_global: Array | None = None) -> Mask:
    """Return the sliding window with global positions of Longformer.

    Parameters
    ----------
    window : int or (left, right)
        How many keys to either side a query attends, as in the option ``window`` of attention: ``w`` is ``(w, w)``.
        The window size of the paper is ``2 * w + 1`` keys.
    is_global : array, optional
        ``(S,)``, boolean: positions that attend everything and are attended by everything.

    Returns
    -------
    Mask
        ``WindowMask(left, right)``, or its union with ``GlobalMask(is_global)``.

    Raises
    ------
    TypeError
        If `window` is no int or pair of int, or `is_global` no boolean array.
    ValueError
        If a side of `window` is negative, or `is_global` does not have one axis.

    References
    ----------
    Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.masks import longformer_mask
    >>> longformer_mask(1, np.asarray([True, False, False, False])).to_array(4, 4)
    array([[ True,  True,  True,  True],
           [ True,  True,  True, False],
           [ True,  True,  True,  True],
           [ True, False,  True,  True]])
    """
    near = WindowMask(*check_window(window))
    return near if is_global is None else near | GlobalMask(is_global)


def bigbird_mask(
    num_blocks: int,
    block_size: int,
    *,
    num_random: int,
    num_global: int,
    window_blocks: int,
    rng: "int | np.random.Generator",
) -> BlockMask:
    """Return the blocks of BigBird: a sliding window, global blocks and random blocks.

    Parameters
    ----------
    num_blocks : int
        Number of blocks of a sequence, which is ``num_blocks * block_size`` positions long.
    block_size : int
        Positions in a block.
    num_random : int
        Random key blocks for each query block, drawn without replacement from those that window and global blocks
        leave over; all of them where they are fewer.
    num_global : int
        The first so many blocks attend everything and are attended by everything.
    window_blocks : int
        Key blocks in the sliding window, odd: 3 are the own block and one on either side.
    rng : int or numpy.random.Generator
        The seed of the random blocks, or their source.

    Returns
    -------
    BlockMask
        With a NumPy layout, which serves attention on every library.

    Raises
    ------
    TypeError
        If a count is no int, or `rng` neither a seed nor a generator of NumPy.
    ValueError
        If a count is too low, or `window_blocks` is even.

    References
    ----------
    Zaheer et al., "Big Bird: Transformers for Longer Sequences", 2020.

    Examples
    --------
    >>> from attention_xp.masks import bigbird_mask
    >>> mask = bigbird_mask(64, 64, num_random=3, num_global=2, window_blocks=3, rng=0)
    >>> mask, round(mask.density(4096, 4096), 3)
    (BlockMask(bool[64, 64], (64, 64)), 0.152)
    """
    import numpy as np  # noqa: PLC0415  # the import of the package loads no array library

    num_blocks = check_count("num_blocks", num_blocks)
    num_random = check_count("num_random", num_random, low=0)
    num_global = check_count("num_global", num_global, low=0)
    window_blocks = check_count("window_blocks", window_blocks)
    if window_blocks % 2 == 0:
        raise ValueError(f"window_blocks must be odd, the own block and as many on either side, got {window_blocks}")
    index = np.arange(num_blocks)
    layout = np.abs(index[:, None] - index) <= window_blocks // 2
    layout |= (index[:, None] < num_global) | (index < num_global)
    lots = np.where(layout, np.inf, _generator(np, rng).random(layout.shape))
    rank = np.argsort(np.argsort(lots, axis=1), axis=1)
    return BlockMask(layout | (rank < num_random), block_size)


def _generator(np: Any, rng: Any) -> Any:
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not hasattr(rng, "__index__"):
        raise TypeError(f"rng must be an int or a numpy.random.Generator, got {type(rng).__name__}")
    return np.random.default_rng(check_count("rng", rng, low=0))


def sparse_transformer_mask(stride: int, kind: str = "strided") -> Mask:
    r"""Return a causal pattern of the Sparse Transformer: both of its heads as one.

    With :math:`l` the stride, the query at :math:`q` attends the keys :math:`k \le q` with

    .. math::
        q - k \le l \;\lor\; (q - k) \bmod l = 0  \quad \text{(strided)}

        \lfloor q / l \rfloor = \lfloor k / l \rfloor \;\lor\; k \bmod l = l - 1  \quad \text{(fixed)}

    Parameters
    ----------
    stride : int
        :math:`l`, about the square root of the sequence length.
    kind : {"strided", "fixed"}, default: "strided"
        Strided suits images and other data with a period, fixed suits text. The last position of each block is
        its summary in the fixed pattern (:math:`c = 1` in the paper).

    Returns
    -------
    Mask
        A combination of rules.

    Raises
    ------
    TypeError
        If `stride` is no int.
    ValueError
        If `stride` is below 1, or `kind` is neither of the two.

    References
    ----------
    Child, Gray, Radford, Sutskever, "Generating Long Sequences with Sparse Transformers", 2019.

    Examples
    --------
    >>> from attention_xp.masks import sparse_transformer_mask
    >>> sparse_transformer_mask(2, "fixed").to_array(4, 4)
    array([[ True, False, False, False],
           [ True,  True, False, False],
           [False,  True,  True, False],
           [False,  True,  True,  True]])
    """
    stride = check_count("stride", stride)
    if kind == "strided":
        return CausalMask() & (WindowMask(stride, 0) | StridedMask(stride))
    if kind == "fixed":
        return CausalMask() & (SameChunk(stride) | LastOfChunk(stride))
    raise ValueError(f'kind must be "strided" or "fixed", got {kind!r}')
