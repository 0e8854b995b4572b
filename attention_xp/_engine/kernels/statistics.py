"""Statistics of the weights, in memory linear in the lengths."""

from attention_xp._backend.sharding import spec_of
from attention_xp._backend.sizes import is_open
from attention_xp._engine.kernels.meshes import is_automatic
from attention_xp._engine.plan.borders import formula_is_faster
from attention_xp._engine.problem.known_end import filled_to
from attention_xp._engine.problem.one_program import as_one_program, in_automatic_axes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.statistics import Statistics, of_region
from attention_xp._engine.walkers.registry import walker_of
from attention_xp._scores.region import Region

__all__ = ["statistics"]


def statistics(problem: Problem) -> Statistics:
    """Return the statistics of all rows, in the dtype of the computation."""
    problem = problem.with_scaled_query()
    if is_automatic(problem, "tiled"):
        rows, lead = spec_of(problem.query, -1), spec_of(problem.query, -2)
        found = in_automatic_axes(_found, problem, specs=Statistics(rows, rows, rows, lead))
    else:
        found = as_one_program(_found, problem)
    return found._replace(key_totals=filled_to(problem.xp, found.key_totals, problem.given_keys))


def _found(problem: Problem) -> Statistics:
    """Compute all rows at once, or let a walker visit blocks of rows."""
    is_at_once = problem.impl == "dense" or (problem.impl == "auto" and formula_is_faster(problem))
    if is_at_once or problem.is_empty or is_open(problem.query.shape[-2], problem.key.shape[-2]):
        return of_region(problem, Region.whole(problem), problem.query, problem.key)
    return walker_of(problem.xp).statistics(problem)
