"""The plain formula: all scores are materialised, and the weights can be returned."""

from functools import cache
from types import ModuleType

from attention_xp._backend.libraries import is_jax_namespace, is_numpy_namespace, is_torch_namespace
from attention_xp._backend.modes import is_left_open
from attention_xp._engine.kernels.meshes import refused_mesh
from attention_xp._engine.plan.borders import sdpa_is_slow_for_few_rows
from attention_xp._engine.plan.host import may_need_gradients
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.tile.formula import attend_at_once

__all__ = ["are_few_rows", "attend", "attend_few_rows", "is_worthwhile", "loops_of", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:  # noqa: ARG001
    """Return why this kernel cannot compute the problem: a sharded sequence, or open lengths that share an axis with heads."""
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    if problem.group == 1 or not is_left_open(problem.xp, Sq, Sk) or (isinstance(Sq, int) and isinstance(Sk, int)):
        return refused_mesh(problem, "dense", range(-problem.ndim, -2))
    return "heads are grouped and lengths are left open, which torch.export knows with strict=True alone"


def is_worthwhile(problem: Problem, wanted: Wanted) -> bool:  # noqa: ARG001
    """Return whether this kernel is a good choice: it is the last."""
    return True


def are_few_rows(problem: Problem) -> bool:
    """Return whether NumPy has products for few rows on many keys that are faster than tiles, as in decoding."""
    if is_jax_namespace(problem.xp):
        from attention_xp._engine.walkers.jax import on_numpy  # noqa: PLC0415  # imports JAX

        return on_numpy.are_few_rows(problem)
    if not is_numpy_namespace(problem.xp):
        return False
    return bool(_at_once().are_few_without_rules(problem))


def attend_few_rows(problem: Problem, wanted: Wanted) -> Attended | None:
    """Compute a problem of NumPy arrays without weights, if it is one of few rows without rules; ``None`` otherwise."""
    at_once = _at_once()
    return at_once.attend(problem, wanted) if at_once.are_few_without_rules(problem) else None


@cache
def _at_once() -> ModuleType:
    """Import NumPy's walker of few rows; to do that in each step of decoding would take longer than to ask it."""
    from attention_xp._engine.walkers.numpy import at_once  # noqa: PLC0415  # imports NumPy

    return at_once


def _has_own_products(problem: Problem) -> bool:
    return bool(_at_once().are_few_rows(problem))


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem by the formula."""
    if is_numpy_namespace(problem.xp) and not wanted.weights and problem.once(_has_own_products):
        return _at_once().attend(problem, wanted)  # type: ignore[no-any-return]
    found = _attended_by_numpy(problem, wanted)
    return attend_at_once(problem, wanted) if found is None else found


def loops_of(problem: Problem, wanted: Wanted) -> str | None:
    """Return ``"numba"`` where compiled loops compute few rows, of NumPy's arrays or of others that NumPy's walker reads."""
    may_be_compiled = is_numpy_namespace(problem.xp) or _are_for_numpy(problem)
    return "numba" if not wanted.weights and may_be_compiled and _at_once().are_compiled(problem) else None


def _are_for_numpy(problem: Problem) -> bool:
    """Whether NumPy's walker may be faster for few rows of torch or JAX in host memory."""
    if is_jax_namespace(problem.xp):
        return are_few_rows(problem)
    return is_torch_namespace(problem.xp) and sdpa_is_slow_for_few_rows(problem) and not may_need_gradients(problem)


def _attended_by_numpy(problem: Problem, wanted: Wanted) -> Attended | None:
    """Compute few rows of torch or JAX in host memory where NumPy's walker is faster; ``None`` elsewhere."""
    if wanted.weights or not _are_for_numpy(problem):
        return None
    if is_jax_namespace(problem.xp):
        from attention_xp._engine.walkers.jax import on_numpy  # noqa: PLC0415  # imports JAX

        return on_numpy.few_rows(problem, wanted)
    from attention_xp._engine.walkers.torch.on_numpy import few_rows  # noqa: PLC0415  # imports torch

    return few_rows(problem, wanted)
