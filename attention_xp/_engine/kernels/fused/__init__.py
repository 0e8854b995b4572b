"""Guests: the kernels that the libraries bring, used only where they compute exactly the problem asked."""

from typing import Protocol

from attention_xp._backend.libraries import is_torch_namespace, library_name
from attention_xp._engine.kernels.fused import _cudnn, _cupy, _jax, _torch
from attention_xp._engine.plan.one_array import shape_of_rules
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted

__all__ = ["array_of_rules", "attend", "is_worthwhile", "refusal"]


class _Guest(Protocol):
    """A kernel of a library, which takes arrays of one library."""

    def refusal(self, problem: Problem, wanted: Wanted) -> str | None:
        """Return why it cannot compute the problem; ``None`` where it can."""

    def is_worthwhile(self, problem: Problem) -> bool:
        """Return whether it is a good choice where it can, for a call that does not want the weights."""

    def attend(self, problem: Problem, wanted: Wanted) -> Attended | None:
        """Compute the problem; ``None`` where the result is not to be trusted and another kernel may compute."""


# The first that does not refuse is taken.
_GUESTS: dict[str, tuple[_Guest, ...]] = {"torch": (_torch,), "jax": (_jax,), "cupy": (_cupy, _cudnn)}


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return why no guest can compute the problem: the reasons of all of them."""
    library = library_name(problem.xp)
    if library not in _GUESTS:
        return f"there is no fused kernel for {library} arrays"
    if wanted.weights:
        return "a fused kernel does not give the weights"
    reasons: list[str] = []
    for guest in _GUESTS[library]:
        reason = guest.refusal(problem, wanted)
        if reason is None:
            return None
        reasons.append(reason)
    return "; ".join(reasons)


def is_worthwhile(problem: Problem, wanted: Wanted) -> bool:
    """Return whether a guest is the best choice where it can compute the problem."""
    if wanted.weights or library_name(problem.xp) not in _GUESTS:
        return False
    return _taken(problem, wanted).is_worthwhile(problem)


def attend(problem: Problem, wanted: Wanted) -> Attended | None:
    """Let a guest compute; ``None`` where its result is not to be trusted and another kernel may compute."""
    return _taken(problem, wanted).attend(problem.with_scaled_query(), wanted)


def array_of_rules(problem: Problem) -> tuple[int, ...] | None:
    """Return the shape of the boolean array that is made of all rules for a guest; ``None`` where none is."""
    return shape_of_rules(problem) if is_torch_namespace(problem.xp) and _torch.makes_array(problem) else None


def _taken(problem: Problem, wanted: Wanted) -> _Guest:
    """Return the first guest that can compute the problem, or else the last one, which is not asked."""
    guests = _GUESTS[library_name(problem.xp)]
    for guest in guests[:-1]:
        if problem.once(guest.refusal, wanted) is None:
            return guest
    return guests[-1]
