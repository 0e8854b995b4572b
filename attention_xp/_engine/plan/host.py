"""Which problems of torch NumPy's walker computes."""

from attention_xp._backend.libraries import is_torch_namespace
from attention_xp._backend.modes import in_forward_mode, is_recorded
from attention_xp._engine.problem.problem import Problem

__all__ = ["is_for_numpy", "may_need_gradients"]


def is_for_numpy(problem: Problem) -> bool:
    """Whether a problem of torch lies in host memory, and neither torch nor the user has to see what is done with it.

    It is then faster by NumPy's walker than in loops over torch's operations, if its tensors can be read.
    """
    if not is_torch_namespace(problem.xp) or problem.query.device.type != "cpu":
        return False
    if is_recorded() or in_forward_mode():  # or while torch compiles
        return False
    return problem.packing is None and not problem.has_foreign_bias and not problem.has_foreign_code()


def may_need_gradients(problem: Problem) -> bool:
    """Whether torch may go backward to query, key or value; they are named with it, so that the answer may be kept."""
    # Pages in the place of keys and values say nothing of gradients.
    return any(getattr(a, "requires_grad", False) for a in (problem.query, problem.key, problem.value))
