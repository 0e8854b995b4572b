"""The online softmax over tiles: memory linear in the lengths, every option."""

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import is_numpy_namespace, library_name
from attention_xp._backend.modes import is_left_open
from attention_xp._backend.sizes import is_open
from attention_xp._engine.kernels.dense import are_few_rows
from attention_xp._engine.kernels.meshes import refused_mesh
from attention_xp._engine.plan.borders import formula_is_faster
from attention_xp._engine.plan.host import is_for_numpy
from attention_xp._engine.plan.plan import bounds
from attention_xp._engine.plan.tile_sizes import tile_sizes
from attention_xp._engine.problem.one_program import as_one_program
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.tile.formula import attend_at_once, weights_of_rows
from attention_xp._engine.walkers.registry import walker_of
from attention_xp._typing import Array

__all__ = ["attend", "is_worthwhile", "loops_of", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:  # noqa: ARG001
    """Return why this kernel cannot compute the problem: sharded arrays, or lengths that leave the number of tiles open."""
    if is_left_open(problem.xp, problem.query.shape[-2], problem.key.shape[-2]):
        return "an exported program has a fixed number of tiles, and lengths are left open"
    return refused_mesh(problem, "tiled", ())


def is_worthwhile(problem: Problem, wanted: Wanted) -> bool:
    """Return whether tiles are a good choice: not for few scores, nor where the weights are materialised anyway."""
    if wanted.weights or refusal(problem, wanted) is not None:
        return False
    return not formula_is_faster(problem) and not are_few_rows(problem)


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem tile by tile; wanted weights are assembled block by block of rows."""
    if problem.is_empty:
        return attend_at_once(problem, wanted)  # there is nothing to materialise
    output, lse = walker_of(problem.xp).forward(problem.with_scaled_query(), lse=wanted.lse)
    return Attended(
        _rounded(problem, output),
        as_one_program(_weights, problem) if wanted.weights else None,
        lse if wanted.lse else None,
    )


def _rounded(problem: Problem, output: Array) -> Array:
    """Return the output in the dtype of the result."""
    if output.dtype == problem.result_dtype or not is_for_numpy(problem) or output.requires_grad:
        return as_dtype(problem.xp, output, problem.result_dtype)
    from attention_xp._engine.walkers.torch.in_16_bits import rounded  # noqa: PLC0415  # imports torch

    return rounded(output, problem.result_dtype)


def loops_of(problem: Problem, wanted: Wanted) -> str | None:  # noqa: ARG001
    """Return what computes the tiles on NumPy: ``"numba"``, or why it does not; ``None`` where another walker does."""
    if library_name(problem.xp) == "jax":
        from attention_xp._engine.walkers.jax.host import is_handed_over  # noqa: PLC0415  # imports JAX

        return "numba" if is_handed_over(problem) else None
    seen = problem if is_numpy_namespace(problem.xp) else _seen_by_numpy(problem)
    if seen is None:
        return None
    from attention_xp._engine.walkers.numpy.compiled.found import missing  # noqa: PLC0415  # where NumPy is imported

    return missing(seen) or "numba"


def _seen_by_numpy(problem: Problem) -> Problem | None:
    """Return a problem of torch as NumPy's walker computes it; ``None`` where it does not."""
    if not is_for_numpy(problem):
        return None
    from attention_xp._engine.walkers.torch.on_numpy import seen_by_numpy  # noqa: PLC0415  # imports torch

    return seen_by_numpy(problem)


def _weights(problem: Problem) -> Array:
    rows, Sq = tile_sizes(problem)[0], problem.query.shape[-2]
    if is_open(Sq):
        return weights_of_rows(problem, 0, Sq)  # the number of blocks is not known
    blocks = [weights_of_rows(problem, *block) for block in bounds(0, Sq, rows)]
    weights = problem.xp.concat(blocks, axis=-2)
    return as_dtype(problem.xp, weights, problem.query.dtype)  # NumPy joins in the machine's byte order
