"""NumPy's walker: threads that compute in place, each in buffers of its own.

Gradients of a bias that is a rule are left to the portable walker: every tile may add to all arrays of such a rule, which
threads would have to share.
"""

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.walkers.numpy import backward as threads
from attention_xp._engine.walkers.numpy.forward import forward
from attention_xp._engine.walkers.numpy.statistics import statistics
from attention_xp._engine.walkers.portable import backward as loops

__all__ = ["backward", "forward", "statistics"]


def backward(problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Gradients:
    """Return the gradients; those of a bias that is a rule, and all that come with them, by the portable walker."""
    if problem.has_bias_rule:
        return loops.backward(problem, known, wanted)
    return threads.backward(problem, known, wanted)
