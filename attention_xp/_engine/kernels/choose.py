"""Ask the kernels in order; the first that can compute a problem, and is worth its while, does."""

from types import ModuleType

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.modes import refuse_shards
from attention_xp._engine.kernels import dense, fused, tiled
from attention_xp._engine.problem.known_end import with_zeros
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted

__all__ = ["answers", "attend", "choose"]

KERNELS: dict[str, ModuleType] = {"fused": fused, "tiled": tiled, "dense": dense}


def answers(problem: Problem, wanted: Wanted) -> dict[str, str | None]:
    """Return for each kernel why it cannot compute the problem; ``None`` where it can."""
    return {name: kernel.refusal(problem, wanted) for name, kernel in KERNELS.items()}


def choose(problem: Problem, wanted: Wanted) -> str:
    """Return the name of the kernel asked for, or of the best that can; `ValueError` says why one cannot."""
    if problem.impl == "auto":
        for name, kernel in KERNELS.items():
            if kernel.is_worthwhile(problem, wanted) and kernel.refusal(problem, wanted) is None:
                return name
    impl = "dense" if problem.impl == "auto" else problem.impl  # the last to be asked
    reason = KERNELS[impl].refusal(problem, wanted)
    if reason is not None:
        able = " and ".join(
            f"impl={name!r}" for name in ("dense", "tiled") if not KERNELS[name].refusal(problem, wanted)
        )
        hint = f"; {able} can" if able else ""
        raise ValueError(f"impl={problem.impl!r} cannot compute this call: {reason}{hint}")
    return impl


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem with the kernel asked for, or the best that can.

    Under torch's autocast a guest does as it is used to; the other kernels have chosen the dtype of their products.
    """
    name = problem.once(choose, wanted)
    if name == "fused":
        result: Attended | None = fused.attend(problem, wanted)
        if result is not None:
            return result
        name = "tiled" if tiled.is_worthwhile(problem, wanted) else "dense"
    refuse_shards(problem.xp)
    problem, context = sheltered(problem)
    with context:
        found: Attended = KERNELS[name].attend(problem, wanted)
    if not wanted.weights:
        return found
    return found._replace(weights=with_zeros(problem.xp, found.weights, problem.given_keys))
