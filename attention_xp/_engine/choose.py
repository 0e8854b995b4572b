"""Ask the kernels in order; the first that can compute a problem, and is worth its while, does."""

from types import ModuleType

from attention_xp._engine import dense, fused, tiled
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Attended, Wanted

__all__ = ["answers", "attend"]

KERNELS: dict[str, ModuleType] = {"fused": fused, "tiled": tiled, "dense": dense}


def answers(problem: Problem, wanted: Wanted) -> dict[str, str | None]:
    """Return for each kernel why it cannot compute the problem; ``None`` where it can."""
    return {name: kernel.refusal(problem, wanted) for name, kernel in KERNELS.items()}


def _choose(problem: Problem, wanted: Wanted) -> ModuleType:
    if problem.impl != "auto":
        kernel = KERNELS[problem.impl]
        reason = kernel.refusal(problem, wanted)
        if reason is not None:
            raise ValueError(f"impl={problem.impl!r} cannot compute this call: {reason}")
        return kernel
    for kernel in KERNELS.values():
        if kernel.is_worthwhile(problem, wanted) and kernel.refusal(problem, wanted) is None:
            return kernel
    return dense


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem with the kernel asked for, or the best that can."""
    result: Attended = _choose(problem, wanted).attend(problem, wanted)
    return result
