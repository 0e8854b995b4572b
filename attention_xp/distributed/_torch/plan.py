"""Which keys of which rank the rows of a rank can reach."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from attention_xp._typing import Array, DType
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._layouts import Layout, Stretch, cut, stretches

__all__ = ["Message", "Piece", "Ring"]

Message = tuple[Array, Array]  # adjacent or scattered keys of a shard, and their values: (..., Hkv, some, D)


_answers: dict[Any, dict[Any, bool]] = {}  # of the rules of earlier calls
_KINDS = 32  # so many calls are remembered


class Piece(NamedTuple):
    """Adjacent keys: where they lie in the sequence, and the tensors."""

    keys: Stretch
    key: Array
    value: Array


class Ring:
    """The shards of a call, and what its masks leave of them.

    Each shard goes straight from its owner to those who need it, in step s to the rank s places further. That is as much as
    if it were handed round, and less where a rank needs but a part.
    """

    def __init__(self, call: Call, rank: int, n: int, layout: Layout) -> None:
        self.call, self.rank, self.n = call, rank, n
        self._answers = _answers_of(call)
        self._queries, self._keys = (
            [Rows.of(stretches(n, r, length, layout)) for r in range(n)] for length in (call.Sq, call.Sk)
        )
        self.rows = self._queries[rank]
        self.reached = {
            (receiver, owner): self._reached(receiver, owner)
            for step in range(1, n)
            for receiver, owner in ((rank, (rank - step) % n), ((rank + step) % n, rank))
        }

    def _reached(self, receiver: int, owner: int) -> list[Stretch]:
        """Return those of an owner's keys that a receiver needs."""
        found = (self._within(self._queries[receiver], keys.whole) for keys in self._keys[owner])
        return [stretch for stretch in found if stretch.size > 0]

    def _within(self, rows: list[Rows], keys: Stretch) -> Stretch:
        """Return the smallest stretch of some keys that holds all that some rows may attend."""

        def is_reached(start: int, stop: int) -> bool:
            return any(self._is_allowed(one, Stretch(start, stop - start)) for one in rows)

        start, stop = keys.bounds
        if start == stop or not is_reached(start, stop):
            return Stretch(start, 0)
        first = _least(start, stop - 1, lambda key: is_reached(start, key + 1))
        last = -_least(1 - stop, -start, lambda key: is_reached(-key, stop))
        return Stretch(first, last + 1 - first)

    def _is_allowed(self, rows: Rows, keys: Stretch) -> bool:
        asked = rows.whole, keys
        if asked not in self._answers:
            self._answers[asked] = bool(self.call.any_allowed(rows, keys))
        return self._answers[asked]

    def own_pieces(self, key: Array, value: Array) -> list[Piece]:
        """Return views of all keys and values of this rank."""
        return [Piece(one.whole, *(cut(x, one.shard, -2) for x in (key, value))) for one in self._keys[self.rank]]

    def blocks(self, step: int, pieces: list[Piece]) -> Iterator[tuple[int, Piece, bool]]:
        """Yield which rows meet which keys of a step, and whether these are the keys that stand for them: those with sinks."""
        for i, rows in enumerate(self.rows):
            for j, piece in enumerate(pieces):
                is_own = step == 0 and i == j
                if is_own or self._is_allowed(rows, piece.keys):
                    yield i, piece, is_own

    def packed(self, key: Array, value: Array, wanted: list[Stretch]) -> Message:
        """Return the wanted keys and values of this rank; where all are wanted, the tensors themselves."""
        if wanted == [one.whole for one in self._keys[self.rank]]:
            return key.contiguous(), value.contiguous()
        pieces = self.pieces(key, value, wanted)
        return tuple(
            torch.cat([piece[i] for piece in pieces], -2) if pieces else x[..., :0, :]
            for i, x in ((1, key), (2, value))
        )

    def pieces(self, key: Array, value: Array, wanted: list[Stretch]) -> list[Piece]:
        """Return views of the wanted keys and values of this rank."""
        return [Piece(one, *(cut(x, self._in_shard(one), -2) for x in (key, value))) for one in wanted]

    def _in_shard(self, keys: Stretch) -> Stretch:
        (start, stop), homes = keys.bounds, self._keys[self.rank]
        home = next(one for one in homes if one.whole.start <= start and stop <= one.whole.bounds[1])
        return Stretch(home.shard.start + start - home.whole.start, keys.size)

    def room(self, key: Array, value: Array, wanted: list[Stretch], dtype: DType | None = None) -> Message:
        """Return tensors for wanted keys and values of any rank, which have the other axes of those of this one."""
        count = sum(one.size for one in wanted)
        return tuple(x.new_empty((*x.shape[:-2], count, x.shape[-1]), dtype=dtype) for x in (key, value))

    def unpacked(self, message: Message, wanted: list[Stretch]) -> list[Piece]:
        """Return views of the keys and values of a message."""
        return [Piece(one.whole, *(cut(x, one.shard, -2) for x in message)) for one in Rows.of(wanted)]


def _answers_of(call: Call) -> dict[Any, bool]:
    """Return what the rules of a call are known to say, which is kept for other calls with the same rules."""
    identity = call.identity
    if identity is None:
        return {}
    if identity not in _answers and len(_answers) == _KINDS:
        _answers.pop(next(iter(_answers)))
    return _answers.setdefault(identity, {})


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the least number from `low` to `high` for which something holds.

    It must hold for `high`, and for all numbers above one for which it holds.
    """
    if holds(low):
        return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
