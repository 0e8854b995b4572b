"""The online softmax over tiles: memory linear in the lengths, every option."""

from attention_xp._backend import library_name
from attention_xp._engine import dense
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Attended, Wanted
from attention_xp._typing import Array

__all__ = ["attend", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:  # noqa: ARG001
    """Return why this kernel cannot compute the problem."""
    return "it does not assemble weights yet" if wanted.weights else None


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem tile by tile."""
    if 0 in problem.query.shape or 0 in problem.key.shape or 0 in problem.value.shape:
        return dense.attend(problem, wanted)  # nothing to materialise
    output, lse = _walk(problem)
    output = problem.xp.astype(output, problem.query.dtype, copy=False)
    return Attended(output, None, lse if wanted.lse else None)


def _walk(problem: Problem) -> tuple[Array, Array]:
    """Visit the tiles the way the library of the arrays likes it."""
    library = library_name(problem.xp)
    if library == "numpy":
        from attention_xp._engine.threads import walk  # noqa: PLC0415
    elif library == "jax":
        from attention_xp._engine.lax import walk  # noqa: PLC0415
    else:
        from attention_xp._engine.loop import walk  # noqa: PLC0415
    return walk(problem)
