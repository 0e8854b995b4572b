"""The online softmax over tiles: memory linear in the lengths, every option."""

from attention_xp._backend.libraries import library_name
from attention_xp._backend.modes import is_left_open
from attention_xp._engine import dense
from attention_xp._engine.borders import formula_is_faster
from attention_xp._engine.planning.plan import bounds
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Attended, Wanted
from attention_xp._engine.tile_sizes import tile_sizes
from attention_xp._typing import Array

__all__ = ["attend", "is_worthwhile", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:  # noqa: ARG001
    """Return why this kernel cannot compute the problem: there are as many tiles as the lengths say."""
    if is_left_open(problem.xp, problem.query.shape[-2], problem.key.shape[-2]):
        return "an exported program has a fixed number of tiles, and lengths are left open; impl='dense' can leave them open"
    return None


def is_worthwhile(problem: Problem, wanted: Wanted) -> bool:
    """Return whether tiles pay: not for few scores, nor where the weights are materialised anyway."""
    return not wanted.weights and refusal(problem, wanted) is None and not formula_is_faster(problem)


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Compute a problem tile by tile; wanted weights are assembled block by block of rows."""
    if problem.is_empty:
        return dense.attend(problem, wanted)  # there is nothing to materialise
    output, lse = _walk(problem, wanted)
    return Attended(
        problem.xp.astype(output, problem.query.dtype, copy=False),
        _weights(problem) if wanted.weights else None,
        lse if wanted.lse else None,
    )


def _weights(problem: Problem) -> Array:
    rows, _ = tile_sizes(problem)
    blocks = [dense.weights_of_rows(problem, *block) for block in bounds(0, problem.query.shape[-2], rows)]
    return problem.xp.concat(blocks, axis=-2)


def _walk(problem: Problem, wanted: Wanted) -> tuple[Array, Array | None]:
    """Visit the tiles the way the library of the arrays likes it."""
    library = library_name(problem.xp)
    if library == "numpy":
        from attention_xp._engine.threads.walk import walk as threads_walk  # noqa: PLC0415  # imports NumPy

        return threads_walk(problem, lse=wanted.lse)
    if library == "torch":
        from attention_xp._engine.loop.autograd import walk  # noqa: PLC0415  # imports torch
    elif library == "jax":
        from attention_xp._engine.lax.derivatives import walk  # noqa: PLC0415  # imports JAX
    else:
        from attention_xp._engine.loop.walk import walk  # noqa: PLC0415
    return walk(problem)
