"""The interfaces of kernels: of our own, and of guests, which are kernels that other libraries bring."""

from typing import Protocol

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted

__all__ = ["Candidate", "Guest", "Kernel"]


class Candidate(Protocol):
    """What a kernel is asked before it is chosen."""

    def refusal(self, problem: Problem, wanted: Wanted) -> str | None:
        """Return why it cannot compute the problem; ``None`` where it can."""

    def is_worthwhile(self, problem: Problem, wanted: Wanted) -> bool:
        """Return whether it is a good choice where it can."""


class Kernel(Candidate, Protocol):
    """A kernel of our own, which always has a result."""

    def attend(self, problem: Problem, wanted: Wanted) -> Attended:
        """Compute the problem."""


class Guest(Protocol):
    """A kernel of a library, which takes arrays of one library."""

    def refusal(self, problem: Problem, wanted: Wanted) -> str | None:
        """Return why it cannot compute the problem; ``None`` where it can."""

    def is_worthwhile(self, problem: Problem) -> bool:
        """Return whether it is a good choice where it can, for a call that does not want the weights."""

    def attend(self, problem: Problem, wanted: Wanted) -> Attended | None:
        """Compute the problem; ``None`` where the result is not to be trusted and another kernel may compute."""
