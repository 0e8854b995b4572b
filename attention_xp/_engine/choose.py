"""Ask the kernels in order; the first that can compute a problem does."""

from types import ModuleType

from attention_xp._engine import dense, tiled
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Attended, Wanted

__all__ = ["attend", "choose"]

KERNELS: dict[str, ModuleType] = {"tiled": tiled, "dense": dense}


def choose(problem: Problem, wanted: Wanted) -> ModuleType:
    """Return the kernel that was asked for, or the first that can; `ValueError` says why none can."""
    names = list(KERNELS) if problem.impl == "auto" else [problem.impl]
    reasons = []
    for name in names:
        kernel = KERNELS.get(name)
        reason = "this version has no such kernel" if kernel is None else kernel.refusal(problem, wanted)
        if kernel is not None and reason is None:
            return kernel
        reasons.append(f"impl={name!r} cannot compute this call: {reason}")
    raise ValueError("; ".join(reasons))


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem with the chosen kernel."""
    result: Attended = choose(problem, wanted).attend(problem, wanted)
    return result
