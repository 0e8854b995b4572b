"""How a sequence is dealt out to ranks: one stretch each, or two, so that causal attention is as much work for all."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import ArrayT

__all__ = [
    "Layout",
    "Stretch",
    "check_layout",
    "check_lengths",
    "cut",
    "shard_positions",
    "shard_sequence",
    "stretches",
    "unshard_sequence",
]

Layout = Literal["zigzag", "contiguous"]
_LAYOUTS = ("zigzag", "contiguous")


class Stretch(NamedTuple):
    """Adjacent positions of a sequence."""

    start: Any  # an int; in JAX, where the rank is known to the program alone, a traced one
    size: int

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The first position, and that behind the last."""
        return self.start, self.start + self.size


def stretches(n: int, rank: Any, length: int, layout: Layout) -> list[Stretch]:
    """Return the stretches of a sequence that a rank holds, in the order in which it holds them; the rank may be traced."""
    if layout == "contiguous":
        return [Stretch(rank * (length // n), length // n)]
    size = length // (2 * n)
    return [Stretch(rank * size, size), Stretch((2 * n - 1 - rank) * size, size)]


def check_layout(layout: Any) -> Layout:
    """Return a layout, or raise a ValueError that names those there are."""
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(map(repr, _LAYOUTS))}, got {layout!r}")
    return cast("Layout", layout)


def check_lengths(n: Any, length: int, layout: Any) -> tuple[int, Layout]:
    n, layout = check_count("n", n), check_layout(layout)
    parts = n if layout == "contiguous" else 2 * n
    if length % parts:
        raise ValueError(
            f"a sequence of {length} positions is not divisible into {parts} equal stretches for {n} ranks "
            f"({layout}): pad it, and give key_lengths and query_lengths"
        )
    return n, layout


def shard_sequence(x: ArrayT, n: int, *, layout: Layout, axis: int = -2) -> list[ArrayT]:
    """Cut an array along its sequence into the shards of n ranks.

    Parameters
    ----------
    x : array
        Any array with an axis of the sequence, of length S.
    n : int
        The number of ranks.
    layout : {"zigzag", "contiguous"}
        ``"contiguous"``: rank r holds the r-th of n equal stretches. ``"zigzag"``: it holds the r-th and the r-th from the
        end of 2 n equal stretches, so that under a causal mask all ranks have the same work.
    axis : int, default: -2
        The axis of the sequence.

    Returns
    -------
    list of array
        The shards of rank 0 to n - 1, each with S / n positions.

    Raises
    ------
    TypeError
        If `x` is no array, or `n` no integer.
    ValueError
        If the sequence is not divisible into equal stretches, or there is no such layout.

    See Also
    --------
    unshard_sequence : the way back.
    shard_positions : the positions of a rank.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.distributed import shard_sequence
    >>> [shard.tolist() for shard in shard_sequence(np.arange(8), 2, layout="zigzag", axis=0)]
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    xp = common_namespace(x=x)
    length: int = x.shape[axis]
    n, layout = check_lengths(n, length, layout)
    return [
        _joined(xp, [cut(x, stretch, axis) for stretch in stretches(n, rank, length, layout)], axis)
        for rank in range(n)
    ]


def unshard_sequence(shards: Sequence[ArrayT], *, layout: Layout, axis: int = -2) -> ArrayT:
    """Join the shards of all ranks to the array that `shard_sequence` cut.

    Parameters
    ----------
    shards : sequence of array
        Those of rank 0 to n - 1, of equal shapes.
    layout : {"zigzag", "contiguous"}
        How they were cut.
    axis : int, default: -2
        The axis of the sequence.

    Returns
    -------
    array
        The whole, with n times as many positions as a shard.

    Raises
    ------
    TypeError
        If the shards are no arrays of one library.
    ValueError
        If there are none, their lengths differ, or there is no such layout.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.distributed import shard_sequence, unshard_sequence
    >>> shards = shard_sequence(np.arange(8), 2, layout="zigzag", axis=0)
    >>> unshard_sequence(shards, layout="zigzag", axis=0).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if len(shards) == 0:
        raise ValueError("shards must hold one array for each rank, got none")
    xp = common_namespace(**{f"shards[{i}]": shard for i, shard in enumerate(shards)})
    sizes = {shard.shape[axis] for shard in shards}
    if len(sizes) > 1:
        raise ValueError(f"shards must have equal lengths along axis {axis}, got {[s.shape[axis] for s in shards]}")
    length = sizes.pop() * len(shards)
    n, layout = check_lengths(len(shards), length, layout)
    pieces: list[tuple[int, Any]] = []
    for rank, shard in enumerate(shards):
        first = 0
        for stretch in stretches(n, rank, length, layout):
            pieces.append((stretch.start, cut(shard, Stretch(first, stretch.size), axis)))
            first += stretch.size
    return cast("ArrayT", _joined(xp, [piece for _, piece in sorted(pieces, key=lambda pair: pair[0])], axis))


def shard_positions(n: int, rank: int, S: int, layout: Layout) -> list[int]:
    """Return the positions in the sequence of the numbers that a rank holds, in its order.

    Parameters
    ----------
    n : int
        The number of ranks.
    rank : int
        The rank, from 0 to n - 1.
    S : int
        The length of the whole sequence.
    layout : {"zigzag", "contiguous"}
        As in `shard_sequence`.

    Returns
    -------
    list of int
        ``S / n`` positions.

    Raises
    ------
    TypeError
        If a number is no integer.
    ValueError
        If the sequence is not divisible into equal stretches, or there is no such rank or layout.

    Examples
    --------
    >>> from attention_xp.distributed import shard_positions
    >>> shard_positions(2, 0, 8, "zigzag")
    [0, 1, 6, 7]
    """
    n, layout = check_lengths(n, check_count("S", S, low=0), layout)
    if not 0 <= check_count("rank", rank, low=0) < n:
        raise ValueError(f"rank must satisfy 0 <= rank < {n}, got {rank}")
    return [position for stretch in stretches(n, rank, S, layout) for position in range(*stretch.bounds)]


def cut(x: Any, stretch: Stretch, axis: int) -> Any:
    index = [slice(None)] * x.ndim
    index[axis] = slice(*stretch.bounds)
    return x[tuple(index)]


def _joined(xp: Any, pieces: list[Any], axis: int) -> Any:
    return pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=axis)
