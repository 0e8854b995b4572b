"""Guests: the kernels that the libraries bring, used only where they compute exactly the problem asked."""

from types import ModuleType

from attention_xp._backend import library_name
from attention_xp._engine.fused import _cupy, _jax, _torch
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Attended, Wanted

__all__ = ["attend", "is_worthwhile", "refusal"]

_GUESTS: dict[str, ModuleType] = {"torch": _torch, "jax": _jax, "cupy": _cupy}


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return why no guest can compute the problem."""
    library = library_name(problem.xp)
    if library not in _GUESTS:
        return f"there is no fused kernel for {library} arrays"
    if wanted.weights:
        return "a fused kernel does not give the weights"
    reason: str | None = _GUESTS[library].refusal(problem, wanted)
    return reason


def is_worthwhile(problem: Problem, wanted: Wanted) -> bool:
    """Return whether a guest is the best choice where it can."""
    guest = _GUESTS.get(library_name(problem.xp))
    return guest is not None and not wanted.weights and bool(guest.is_worthwhile(problem))


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Hand the problem to the guest."""
    result: Attended = _GUESTS[library_name(problem.xp)].attend(problem, wanted)
    return result
