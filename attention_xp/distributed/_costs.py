"""What each strategy sends, keeps in memory and takes in time, as formulas of the sizes of a call and of a machine."""

import math
from collections.abc import Callable
from typing import NamedTuple

from attention_xp.distributed._layouts import Layout, Stretch, stretches

__all__ = ["STRATEGIES", "Cost", "Machine", "Sizes", "best", "costs"]

_LSE_AND_OUTPUT = 4  # bytes of a number of a partial result, which is float32


class Machine(NamedTuple):
    """Equal ranks, and the links between them.

    Attributes
    ----------
    ranks : int
        How many there are.
    flops : float
        Floating-point operations of one per second, as attention reaches them.
    bandwidth : float
        Bytes that one sends per second, while it receives as many.
    latency : float
        Seconds that a message takes beside its bytes.
    memory : float
        Bytes of one for the arrays of the call.
    """

    ranks: int
    flops: float
    bandwidth: float
    latency: float
    memory: float


class Sizes(NamedTuple):
    """A call on a whole, forward, on queries and keys that are sharded along the sequence.

    Attributes
    ----------
    Sq, Sk : int
        Numbers of queries and of keys; the last query is aligned with the last key.
    B, H, Hkv, D : int
        Batch items, query heads, key/value heads, and the width of a head.
    itemsize : int
        Bytes of a number.
    is_causal : bool
        Whether a query attends keys at its own position and before.
    window : int or None
        How far it sees, to the left, and to the right where it is not causal.
    """

    Sq: int
    Sk: int
    B: int
    H: int
    Hkv: int
    D: int
    itemsize: int
    is_causal: bool
    window: int | None

    def pairs(self, rows: Stretch, keys: Stretch | None = None) -> int:
        """Return how many pairs of some rows and keys, without `keys` of all, may be attended."""
        first, stop = (0, self.Sk) if keys is None else keys.bounds
        offset = self.Sk - self.Sq
        seen_to = 0 if self.is_causal else self.window
        upper = _below(rows, offset, stop, seen_to, first)
        return upper - (0 if self.window is None else _below(rows, offset, stop, -self.window - 1, first))

    def keys(self, length: int) -> int:
        """Return the bytes of keys and values of so many positions."""
        return 2 * self.B * self.Hkv * length * self.D * self.itemsize

    def rows(self, length: int) -> int:
        """Return the bytes of the query, or of the output, of so many positions."""
        return self.B * self.H * length * self.D * self.itemsize

    def seconds(self, pairs: float, machine: Machine) -> float:
        """Return how long a rank computes the products of pairs in all heads: 4 D operations for a pair."""
        return 4.0 * self.B * self.H * self.D * pairs / machine.flops


def _below(rows: Stretch, offset: int, stop: int, seen_to: int | None, first: int) -> int:
    """Count the pairs of rows i and keys in [first, stop) with key <= i + offset + seen_to; None: all."""
    if seen_to is None:
        return rows.size * (stop - first)
    lowest = rows.start + offset + seen_to + 1 - first  # how many keys the first row sees, where it is within bounds
    height = stop - first
    return _ramp(lowest + rows.size, height) - _ramp(lowest, height)


def _ramp(n: int, height: int) -> int:
    """Return the sum of min(max(i, 0), height) over i < n."""
    rising = min(max(n, 0), height)
    return rising * (rising - 1) // 2 + max(n - height, 0) * height if n > 0 else 0


class Cost(NamedTuple):
    """What a strategy costs the rank that it costs most.

    Attributes
    ----------
    strategy : str
        Its name.
    volume : int
        Bytes that a rank sends.
    messages : int
        In how many messages one after the other.
    memory : int
        Bytes beside the shards of query, key, value and output.
    time : float
        Seconds: arithmetic, and the communication that it does not hide.
    problem : str or None
        Why it cannot be taken.
    """

    strategy: str
    volume: int
    messages: int
    memory: int
    time: float
    problem: str | None = None


def costs(sizes: Sizes, machine: Machine) -> list[Cost]:
    """Return what each strategy costs."""
    found = [strategy(sizes, machine) for strategy in STRATEGIES]
    return [cost if cost.problem else cost._replace(problem=_too_large(cost, sizes, machine)) for cost in found]


def best(found: list[Cost]) -> Cost | None:
    """Return the strategy that takes the least time, of those that can be taken; of equals, the first."""
    return min((cost for cost in found if cost.problem is None), key=lambda cost: cost.time, default=None)


def _too_large(cost: Cost, sizes: Sizes, machine: Machine) -> str | None:
    own = sizes.keys(sizes.Sk) // machine.ranks + cost.memory
    if cost.strategy != "merged":
        own += 2 * sizes.rows(sizes.Sq) // machine.ranks
    return "does not fit into memory" if own > machine.memory else None


def _shard(sizes: Sizes, machine: Machine) -> int:
    return sizes.Sk // machine.ranks


def _undealt(sizes: Sizes, parts: int) -> str | None:
    """Return why sequences cannot be dealt out."""
    if sizes.Sq % parts or sizes.Sk % parts:
        return f"queries and keys are not divisible by {parts}"
    return None


def _busiest(sizes: Sizes, machine: Machine, layout: Layout) -> int:
    """Return the pairs of the rank that has most."""
    n = machine.ranks
    return max(sum(sizes.pairs(rows) for rows in stretches(n, rank, sizes.Sq, layout)) for rank in range(n))


def _ring(name: str, layout: Layout) -> Callable[[Sizes, Machine], Cost]:
    def ring(sizes: Sizes, machine: Machine) -> Cost:
        """Every rank passes the shards of keys on; a block is computed while the next arrives."""
        n, shard = machine.ranks, sizes.keys(_shard(sizes, machine))
        step = sizes.seconds(_busiest(sizes, machine, layout) / n, machine)
        arrival = shard / machine.bandwidth + machine.latency
        time = step + (n - 1) * max(step, arrival)
        problem = _undealt(sizes, 2 * n if layout == "zigzag" else n)
        return Cost(name, (n - 1) * shard, n - 1, 2 * shard, time, problem)

    return ring


def _halo(sizes: Sizes, machine: Machine) -> Cost:
    """Every rank sends the keys that its neighbours' windows reach, while it computes the block of its own keys."""
    n, shard = machine.ranks, _shard(sizes, machine)
    if sizes.window is None:
        return _ring("ring, contiguous", "contiguous")(sizes, machine)
    sides = 1 if sizes.is_causal else 2
    reached = min(sides * sizes.window, (n - 1) * shard)
    messages = min(sides * math.ceil(sizes.window / shard), n - 1)
    own = max(sizes.pairs(rows, rows) for rows in (Stretch(rank * shard, shard) for rank in range(n)))
    rest = max(_busiest(sizes, machine, "contiguous") - own, 0)
    arrival = sizes.keys(reached) / machine.bandwidth + messages * machine.latency
    time = max(sizes.seconds(own, machine), arrival) + sizes.seconds(rest, machine)
    problem = _undealt(sizes, n) or ("queries and keys differ in number" if sizes.Sq != sizes.Sk else None)
    return Cost("ring, contiguous", sizes.keys(reached), messages, sizes.keys(reached), time, problem)


def _gathered(sizes: Sizes, machine: Machine) -> Cost:
    """Every rank gathers all keys before it computes."""
    n, volume = machine.ranks, (machine.ranks - 1) * sizes.keys(_shard(sizes, machine))
    time = volume / machine.bandwidth + (n - 1) * machine.latency
    time += sizes.seconds(_busiest(sizes, machine, "zigzag"), machine)
    return Cost("gathered", volume, n - 1, sizes.keys(sizes.Sk), time, _undealt(sizes, 2 * n))


def _ulysses(sizes: Sizes, machine: Machine) -> Cost:
    """Shards of the sequence become shards of the heads, and back; key/value heads fewer than ranks are repeated."""
    n = machine.ranks
    repeated = sizes._replace(Hkv=max(sizes.Hkv, n))
    moved = 2 * sizes.rows(sizes.Sq) // n + repeated.keys(sizes.Sk) // n
    volume = moved * (n - 1) // n
    time = volume / machine.bandwidth + 4 * (n - 1) * machine.latency
    time += sizes.seconds(sizes.pairs(Stretch(0, sizes.Sq)) / n, machine)
    problem = None if sizes.H % n == 0 else f"{sizes.H} heads are not divisible by {n} ranks"
    return Cost("ulysses", volume, 4 * (n - 1), moved, time, problem or _undealt(sizes, n))


def _merged(sizes: Sizes, machine: Machine) -> Cost:
    """Every rank attends its keys with all queries, and the results are merged."""
    n = machine.ranks
    result = sizes.B * sizes.H * sizes.Sq * (sizes.D + 1) * _LSE_AND_OUTPUT
    rounds = 2 * math.ceil(math.log2(n)) if n > 1 else 0
    pairs = min(sizes.Sq * _shard(sizes, machine), sizes.pairs(Stretch(0, sizes.Sq)))
    time = sizes.seconds(pairs, machine) + (2 * result / machine.bandwidth if n > 1 else 0.0) + rounds * machine.latency
    memory = sizes.rows(sizes.Sq) + 2 * result
    return Cost(
        "merged",
        2 * result if n > 1 else 0,
        rounds,
        memory,
        time,
        None if sizes.Sk % n == 0 else f"keys are not divisible by {n}",
    )


STRATEGIES: tuple[Callable[[Sizes, Machine], Cost], ...] = (
    _ring("ring, zigzag", "zigzag"),
    _halo,
    _gathered,
    _ulysses,
    _merged,
)
"""One function for each strategy."""
