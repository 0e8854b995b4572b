"""Two contenders in turns, A B A B: the ratio of each pair, and the median of the ratios.

Absolute times drift with the machine; the ratio within a pair does not. Foreign load slows a contender
that splits its work statically more than one that hands it out job by job: the ratio of the processor
times, which do not count waiting, tells both apart.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Any

__all__ = ["Duel", "Pace", "Turn", "duel", "geometric_mean", "take_turn"]

PAUSE = 0.08  # seconds in which the threads of the contender before come to rest
UNTIMED = 2  # calls


@dataclass(frozen=True)
class Turn:
    """Seconds per call in one turn: on the wall clock, and of all threads of the process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Duel:
    """The turns of both, in pairs."""

    pairs: tuple[tuple[Turn, Turn], ...]

    @property
    def ours(self) -> float:
        """Median seconds per call."""
        return median(a.wall for a, _ in self.pairs)

    @property
    def theirs(self) -> float:
        """Median seconds per call."""
        return median(b.wall for _, b in self.pairs)

    @property
    def ratio(self) -> float:
        """Median of the pairwise ratios, ours to theirs."""
        return median(a.wall / b.wall for a, b in self.pairs)

    @property
    def middle(self) -> tuple[Turn, Turn]:
        """The pair whose ratio is the median, the lower of two: times that belong to each other."""
        return sorted(self.pairs, key=lambda pair: pair[0].wall / pair[1].wall)[(len(self.pairs) - 1) // 2]

    @property
    def cpu_ratio(self) -> float:
        """Median of the pairwise ratios of the processor times."""
        return median(a.cpu / b.cpu if b.cpu else math.nan for a, b in self.pairs)

    @property
    def difference(self) -> float:
        """Median of the pairwise differences in seconds."""
        return median(a.wall - b.wall for a, b in self.pairs)


@dataclass(frozen=True)
class Pace:
    """How long to measure: seconds a turn takes at least, seconds a duel may take, and the number of pairs."""

    rounds: int = 11
    turn: float = 0.15
    limit: float = 90.0

    def calls(self, seconds: float) -> int:
        """Return the calls of one turn of a contender that takes so long for one."""
        return min(max(1, round(self.turn / seconds)), 2000)

    def pairs(self, seconds: Iterable[float]) -> int:
        """Return the number of pairs: fewer than asked for, but three, where a call takes very long."""
        pair = sum((self.calls(each) + 2) * each for each in seconds)
        return min(self.rounds, max(3, int(self.limit / pair)))


def duel(ours: Callable[[int], Turn], theirs: Callable[[int], Turn], pace: Pace) -> Duel:
    """Let both take turns; each is a function of the number of calls. The first turn tells how many, and is not kept."""
    first = ours(1).wall, theirs(1).wall
    mine, yours = map(pace.calls, first)
    return Duel(tuple((ours(mine), theirs(yours)) for _ in range(pace.pairs(first))))


def take_turn(call: Callable[[], Any], calls: int, *, pause: float = PAUSE, untimed: int = UNTIMED) -> Turn:
    """Pause, warm up, and time so many calls."""
    time.sleep(pause)
    for _ in range(untimed):
        call()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    return Turn((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls)
