"""What a call will take, from smaller calls of its kind that are made here and now."""

import math
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

from attention_xp._command.calls import Call
from attention_xp._command.peak import extra_bytes
from attention_xp._command.places import Place, Side

__all__ = ["Estimate", "estimated"]

LONG_ENOUGH = 0.2  # seconds of a sample
SHORTEST = 512  # queries or keys of the first sample


class Estimate(NamedTuple):
    """Seconds, bytes beyond the arguments where they are counted, and the sample that tells them."""

    seconds: float
    extra: float | None
    sample: Call


class _Sample(NamedTuple):
    call: Call
    seconds: float
    extra: int | None


def estimated(call: Call, kernel: str, place: Place) -> Estimate:
    """Measure calls that double in size until one takes long enough, and conclude from the last ones.

    Time grows with the pairs that are computed. Memory grows with the scores where they are all in memory, and else with the
    results: its growth from one sample to the next tells how much of it there is for each byte of these. The buffers of
    tiles on the host end to grow in samples that take so long; only the results do.
    """
    samples: list[_Sample] = []
    for small in _growing(replace(call, impl=kernel)):
        samples.append(_measured(small, place))
        if len(samples) > 1 and samples[-1].seconds >= LONG_ENOUGH:
            break
    last = samples[-1]
    pairs = max(last.call.pairs, 1.0)
    return Estimate(
        last.seconds * max(call.pairs, 1.0) / pairs, _memory(call, kernel, place.backend, samples[-2:]), last.call
    )


def _memory(call: Call, kernel: str, backend: str, samples: list[_Sample]) -> float | None:
    *before, last = samples
    if last.extra is None:
        return None

    def size(c: Call) -> int:
        return c.batch * c.heads * c.queries * c.keys if kernel == "dense" or c.weights else c.result_bytes

    per = last.extra / size(last.call)
    if kernel == "tiled" and backend in ("numpy", "torch") and not call.weights:
        per = 1.0
    elif before and before[0].extra is not None and size(last.call) > size(before[0].call):
        per = (last.extra - before[0].extra) / (size(last.call) - size(before[0].call))
    more = call.result_bytes - last.call.result_bytes  # there are the results at least
    return last.extra + max(per * (size(call) - size(last.call)), more)


def _growing(call: Call) -> list[Call]:
    """Return calls from a small one to the whole: first lengths grow, then heads, then batch items."""
    group = call.heads // call.kv_heads
    halvings = max(0, math.ceil(math.log2(max(call.queries, call.keys) / SHORTEST)))
    one = replace(call, batch=1, heads=group, kv_heads=1)
    result = [
        one.with_lengths(max(1, call.queries >> i), max(1, call.keys >> i)) if i else one
        for i in range(halvings, -1, -1)
    ]
    result += [replace(call, batch=1, heads=group * n, kv_heads=n) for n in _doubled(call.kv_heads)]
    result += [replace(call, batch=batch) for batch in _doubled(call.batch)]
    return result


def _doubled(most: int) -> list[int]:
    """Return 2, 4, 8, ... and in the end the number itself."""
    return [min(2**i, most) for i in range(1, math.ceil(math.log2(most)) + 1)]


def _measured(call: Call, place: Place) -> _Sample:
    side = call.ours(place, call.arrays(place))
    first = _seconds(side)
    repeats = max(2, min(10, int(LONG_ENOUGH / first)))  # others may be at work here: the quickest call tells
    return _Sample(call, min(_seconds(side) for _ in range(repeats)), extra_bytes(side))


def _seconds(side: Side) -> float:
    start = perf_counter()
    side()
    return perf_counter() - start
