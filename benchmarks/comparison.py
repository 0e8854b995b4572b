"""One comparison and the row of a table that comes out of it."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from attention_xp._command.duel import Duel, Pace, duel, geometric_mean
from benchmarks.case import Case
from benchmarks.contenders import absent
from benchmarks.memory import extra_memory
from benchmarks.worker import ContenderError, Workers

__all__ = ["Comparison", "Memory", "Row", "with_means"]


@dataclass(frozen=True)
class Row:
    """What a comparison measured: `value` in `unit` against `target`, and the seconds of both for orientation."""

    case: str
    ours: str
    theirs: str = ""
    group: str = ""
    value: float | None = None
    unit: str = ""
    cpu_ratio: float | None = None
    target: float | None = None
    seconds: tuple[float, float] | None = None
    problem: str = ""
    failed: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one. A group has its target on its mean."""
        if self.target is None or self.value is None or self.group:
            return None
        return self.value <= self.target


def _ratio(outcome: Duel, _case: Case) -> float:
    return outcome.ratio


@dataclass(frozen=True)
class Comparison:
    """Two contenders on a case, or one on two; `value` is what of their duel is held against the target.

    Comparisons of the same `group` get one more row with the geometric mean, and the target applies to that.
    """

    case: Case
    ours: str
    theirs: str
    target: float | None = None
    their_case: Case | None = None
    group: str = ""
    value: Callable[[Duel, Case], float] = _ratio
    unit: str = ""
    label: str = ""

    def smaller(self) -> "Comparison":
        """Return the same on small input, for which no target holds."""
        their_case = self.their_case and self.their_case.smaller()
        return replace(self, case=self.case.smaller(), their_case=their_case, target=None)

    def run(self, workers: Workers, pace: Pace) -> Row:
        """Let the contenders take turns."""
        row = Row(f"{self.case}{self.label}", self.ours, self.theirs, self.group, unit=self.unit, target=self.target)
        if reason := absent(self.ours, self.theirs):
            return replace(row, problem=reason)
        try:
            outcome = self._duel(workers, pace)
        except ContenderError as error:
            return replace(row, problem=str(error), failed=True)
        seconds = outcome.ours, outcome.theirs
        return replace(row, value=self.value(outcome, self.case), cpu_ratio=outcome.cpu_ratio, seconds=seconds)

    def _duel(self, workers: Workers, pace: Pace) -> Duel:
        return duel(
            lambda calls: workers[self.ours].turn(self.case, calls),
            lambda calls: workers[self.theirs].turn(self.their_case or self.case, calls),
            pace,
        )


@dataclass(frozen=True)
class Memory:
    """The peak extra memory of one contender."""

    case: Case
    ours: str
    target: float | None = None

    def smaller(self) -> "Memory":
        """Return the same on small input, for which no target holds."""
        return replace(self, case=self.case.smaller(), target=None)

    def run(self, workers: Workers, pace: Pace) -> Row:  # noqa: ARG002  # as for a comparison
        """Measure once, in a process of its own."""
        row = Row(str(self.case), self.ours, unit="MiB", target=self.target)
        if reason := absent(self.ours):
            return replace(row, problem=reason)
        try:
            return replace(row, value=extra_memory(self.ours, self.case) / 2**20)
        except ContenderError as error:
            return replace(row, problem=str(error), failed=True)


def with_means(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows, and after those of each group their geometric mean."""
    for (group, ours, theirs), members in groupby(rows, lambda row: (row.group, row.ours, row.theirs)):
        kept = list(members)
        yield from kept
        values = [row.value for row in kept if row.value is not None]
        if group and values:
            cpu_ratio = geometric_mean([row.cpu_ratio or math.nan for row in kept if row.value is not None])
            target = kept[0].target if len(values) == len(kept) else None
            name = f"geometric mean, {group}"
            yield Row(name, ours, theirs, value=geometric_mean(values), cpu_ratio=cpu_ratio, target=target)
