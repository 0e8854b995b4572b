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
        Bytes of keys, values and other arrays beside the shards of query, key, value and output, as torch keeps them; what a
        block of scores and its partial result need while they are computed comes on top.
    time : float
        Seconds: arithmetic, and the communication that it does not hide.
    problem : str or None
        Why it cannot be taken.
    mesh : tuple of int or None
        How many ranks form a ring, and how many of them share the heads, where ranks lie along two axes.
    """

    strategy: str
    volume: int
    messages: int
    memory: int
    time: float
    problem: str | None = None
    mesh: tuple[int, int] | None = None


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


def _busiest(sizes: Sizes, n: int, layout: Layout) -> int:
    """Return the pairs of the rank, of n, that has most."""
    return max(sum(sizes.pairs(rows) for rows in stretches(n, rank, sizes.Sq, layout)) for rank in range(n))


def _ring(name: str, layout: Layout) -> Callable[[Sizes, Machine], Cost]:
    def ring(sizes: Sizes, machine: Machine) -> Cost:
        """Every rank sends its shard of the keys to the others; a block is computed while the next arrives."""
        n, shard = machine.ranks, sizes.keys(_shard(sizes, machine))
        time = _ring_time(sizes.seconds(_busiest(sizes, n, layout), machine), n, shard, machine)
        problem = _undealt(sizes, 2 * n if layout == "zigzag" else n)
        return Cost(name, (n - 1) * shard, n - 1, _ring_memory(sizes, n, shard, layout), time, problem)

    return ring


def _ring_time(seconds: float, n: int, shard: int, machine: Machine) -> float:
    """Return how long n ranks take for so many seconds of arithmetic of each, while shards arrive."""
    step = seconds / n
    return step + (n - 1) * max(step, shard / machine.bandwidth + machine.latency)


def _ring_memory(sizes: Sizes, n: int, shard: int, layout: Layout) -> int:
    """Return what a rank keeps: the keys that are computed with, those that arrive, and a copy of what it sends of its own.

    Whole shards are sent as they are. Under a causal mask, ranks want the first half of a zigzag alone of those behind them.
    """
    has_copies = layout == "zigzag" and sizes.is_causal and n > 1
    return min(n - 1, 2) * shard + (shard // 2 if has_copies else 0)


def _halo(sizes: Sizes, machine: Machine) -> Cost:
    """Every rank sends the keys that its neighbours' windows reach, while it computes the block of its own keys."""
    n, shard = machine.ranks, _shard(sizes, machine)
    if sizes.window is None:
        return _ring("ring, contiguous", "contiguous")(sizes, machine)
    sides = 1 if sizes.is_causal else 2
    reached = min(sides * sizes.window, (n - 1) * shard)
    messages = min(sides * math.ceil(sizes.window / shard), n - 1)
    own = max(sizes.pairs(rows, rows) for rows in (Stretch(rank * shard, shard) for rank in range(n)))
    rest = max(_busiest(sizes, n, "contiguous") - own, 0)
    arrival = sizes.keys(reached) / machine.bandwidth + messages * machine.latency
    time = max(sizes.seconds(own, machine), arrival) + sizes.seconds(rest, machine)
    problem = _undealt(sizes, n) or ("queries and keys differ in number" if sizes.Sq != sizes.Sk else None)
    # Of whole shards two, that which is computed with and that which arrives; of a part what arrives and a copy that is sent.
    memory = sizes.keys(max(min(2, n - 1, sizes.window // shard) * shard, _of_part(sizes, shard, n)))
    return Cost("ring, contiguous", sizes.keys(reached), messages, memory, time, problem)


def _of_part(sizes: Sizes, shard: int, n: int) -> int:
    """Return how many keys a rank keeps when it gets those at the end of a window."""
    whole, part = divmod(sizes.window or 0, shard)
    return 0 if whole >= n - 1 else min(whole, 1) * shard + 2 * part


def _gathered(sizes: Sizes, machine: Machine) -> Cost:
    """Every rank gathers all keys before it computes; values arrive, and are put in order, when keys are there."""
    n, volume = machine.ranks, (machine.ranks - 1) * sizes.keys(_shard(sizes, machine))
    time = volume / machine.bandwidth + (n - 1) * machine.latency
    time += sizes.seconds(_busiest(sizes, n, "zigzag"), machine)
    return Cost("gathered", volume, n - 1, sizes.keys(sizes.Sk) * 3 // 2, time, _undealt(sizes, 2 * n))


def _ulysses(sizes: Sizes, machine: Machine) -> Cost:
    """Shards of the sequence become shards of the heads, and back."""
    return _on_mesh("ulysses", sizes, machine, machine.ranks)


def _grid(sizes: Sizes, machine: Machine) -> Cost:
    """Shards become those of the heads along one axis of a mesh, and keys go round along the other: the quickest such mesh."""
    n, name = machine.ranks, "ulysses x ring"
    found = [_on_mesh(name, sizes, machine, heads) for heads in range(2, n) if n % heads == 0]
    if not found:
        return _on_mesh(name, sizes, machine, n)._replace(problem=f"{n} ranks are no mesh of two axes")
    return min(found, key=lambda cost: (cost.problem or _too_large(cost, sizes, machine) or "", cost.time))


def _on_mesh(name: str, sizes: Sizes, machine: Machine, heads: int) -> Cost:
    """Return what it costs where so many ranks share the heads; key/value heads are repeated until they are divisible."""
    n, ring = machine.ranks, machine.ranks // heads
    repeated = sizes._replace(Hkv=math.lcm(sizes.Hkv, heads))
    layout: Layout = "contiguous" if ring == 1 else "zigzag"
    rows, shard = sizes.rows(sizes.Sq) // n, repeated.keys(sizes.Sk) // n
    volume, messages = (2 * rows + shard) * (heads - 1) // heads, 4 * (heads - 1)
    time = volume / machine.bandwidth + messages * machine.latency
    time += _ring_time(sizes.seconds(_busiest(sizes, ring, layout) / heads, machine), ring, shard, machine)
    # First query, keys and output of some heads; then this output, as it is sent, and what has arrived.
    memory = 2 * rows + max(shard + _ring_memory(sizes, ring, shard, layout), rows)
    problem = None if sizes.H % heads == 0 else f"{sizes.H} heads are not divisible by {heads} ranks"
    problem = problem or _undealt(sizes, n if ring == 1 else 2 * n)
    mesh = None if ring == 1 else (ring, heads)
    return Cost(name, volume + (ring - 1) * shard, messages + ring - 1, memory, time, problem, mesh)


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
    _grid,
    _merged,
)
"""One function for each strategy."""
