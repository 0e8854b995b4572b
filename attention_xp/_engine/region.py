"""Where a tile of the scores lies: its index arrays, and the matching piece of other arrays."""

from typing import TYPE_CHECKING

from attention_xp._backend import device
from attention_xp._typing import Array

if TYPE_CHECKING:
    from attention_xp._engine.problem import Problem

__all__ = ["Region"]


class Region:
    """The whole score array of a problem, seen through index arrays that broadcast against it.

    Index arrays are int32 on every backend, so that they mix with each other under the
    strictest promotion rules and feed the counter-based random numbers directly.
    """

    __slots__ = ("problem",)

    def __init__(self, problem: "Problem") -> None:
        self.problem = problem

    @property
    def keys(self) -> int:
        """``Sk``, the number of key columns."""
        return int(self.problem.key.shape[-2])

    @property
    def row(self) -> Array:
        """Rows of the query, counted from 0: ``(Sq, 1)``."""
        return self._count(self.problem.query.shape[-2], trailing=1)

    @property
    def q_idx(self) -> Array:
        """Query positions: rows plus the query offset."""
        offset = self.problem.query_offset
        return self.row if offset is None else self.row + self.per_batch(offset)

    @property
    def kv_idx(self) -> Array:
        """Key positions: ``(Sk,)``."""
        return self._count(self.keys, trailing=0)

    @property
    def h(self) -> Array:
        """Head indices: ``(H, 1, 1)``, or zero where there is no heads axis."""
        heads = self.problem.heads
        return self._count(1, trailing=1) if heads is None else self._count(heads, trailing=2)

    @property
    def b(self) -> Array:
        """Flat index over the leading axes, with one axis for each of theirs."""
        problem = self.problem
        size = 1
        for n in problem.batch:
            size *= n
        return problem.xp.reshape(
            self._count(size, trailing=0), problem.batch + (1,) * (problem.ndim - len(problem.batch))
        )

    def per_batch(self, values: int | Array) -> int | Array:
        """Line one value per batch item up with the scores; a plain int passes through."""
        problem = self.problem
        if isinstance(values, int):
            return values
        trailing = (1,) * (problem.ndim - len(problem.batch))
        return problem.xp.reshape(values, tuple(values.shape) + trailing)

    def look_up(self, aligned: Array) -> Array:
        """Return the piece of an array, aligned with the scores, that covers this region."""
        return aligned

    def _count(self, n: int, *, trailing: int) -> Array:
        xp = self.problem.xp
        count = xp.arange(n, dtype=xp.int32, device=device(self.problem.query))
        return xp.reshape(count, (n,) + (1,) * trailing) if trailing else count
