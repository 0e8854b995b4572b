"""Two contenders in turns, A B A B: the ratio of each pair, and the median of the ratios.

Absolute times drift with the machine; the ratio within a pair does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

__all__ = ["Duel", "duel"]


@dataclass(frozen=True)
class Duel:
    """The outcome: medians of the seconds per call and of the pairwise ratios."""

    ours: float
    theirs: float
    ratio: float


def duel(ours: Callable[[], Any], theirs: Callable[[], Any], *, pairs: int = 15, calls: int = 1) -> Duel:
    """Time `ours` against `theirs` in `pairs` turns of `calls` calls each, after one turn that does not count."""
    _turn(ours, calls), _turn(theirs, calls)
    times = [(_turn(ours, calls), _turn(theirs, calls)) for _ in range(pairs)]
    return Duel(median(a for a, _ in times), median(b for _, b in times), median(a / b for a, b in times))


def _turn(call: Callable[[], Any], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - start) / calls
