"""Forward and backward passes that torch does not record: by NumPy's walker for tensors that it can read, else in loops."""

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.walkers.portable import backward as loops_back, forward as loops
from attention_xp._engine.walkers.torch import on_numpy
from attention_xp._typing import Array

__all__ = ["backward", "forward"]


def forward(problem: Problem) -> tuple[Array, Array]:
    """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq)."""
    return on_numpy.forward(problem) or loops.forward(problem)


def backward(problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Gradients:
    """Return the gradients, but for those of the sinks."""
    return on_numpy.backward(problem, known, wanted) or loops_back.backward(problem, known, wanted)
