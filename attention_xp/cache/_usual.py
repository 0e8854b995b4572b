"""The usual step of decoding on NumPy, without what it has no need of.

One row comes to each item of a static cache, and attends all that are there: so many steps of a program are, and what they do
besides the attention would take a third of its time. Whatever is not as usual goes the longer way, which checks and says it.
"""

from typing import Any

from attention_xp._engine.kernels.choose import attend_step
from attention_xp._engine.problem.problem import Problem
from attention_xp._typing import Array
from attention_xp.cache._caches import StaticCache
from attention_xp.cache._checked import has_passed, kind_of
from attention_xp.cache._written import claimed_by_all

__all__ = ["usual_step"]

_PLAIN = {"is_causal", "dropout_rate"}  # the options of a usual step: a single row is causal anyway
_PROBLEMS: dict[Any, Problem] = {}  # of each kind of step: they differ in their arrays and in the number of keys alone
_MOST = 64


def usual_step(
    cache: Any, query: Array, key: Array, value: Array, how: dict[str, Any]
) -> tuple[Array, StaticCache[Any]] | None:
    """Return the output and the cache after a step; ``None`` where it is not a usual one, and nothing is done."""
    if type(cache) is not StaticCache or not how.keys() <= _PLAIN:
        return None
    kind = kind_of(cache, query=query, key=key, value=value)
    alike = None if kind is None else _PROBLEMS.get(kind)
    if alike is None and not has_passed(kind):
        return None
    is_causal, rate = how.get("is_causal", False), how.get("dropout_rate", 0.0)
    if type(is_causal) is not bool or type(rate) is not float or rate != 0.0 or not query.shape[2] == key.shape[2] == 1:
        return None
    keys, values, lengths = cache
    known = lengths.tolist()
    first = known[0] if known else -1
    if known.count(first) != len(known) or not 0 <= first < keys.shape[2] or not claimed_by_all(keys, values, first):
        return None
    end = first + 1
    keys[:, :, first:end], values[:, :, first:end] = key, value
    seen = query, keys[:, :, :end], values[:, :, :end]
    problem = _first_problem(kind, *seen) if alike is None else alike.of_step(*seen)
    return attend_step(problem).output, StaticCache(keys, values, lengths + 1)


def _first_problem(kind: Any, query: Array, key: Array, value: Array) -> Problem:
    """Return the problem of the first step of a kind, which is kept for the others."""
    if len(_PROBLEMS) >= _MOST:
        _PROBLEMS.clear()
    problem = Problem.of(query, key, value, None, 0.0, {})
    # A view, even of nothing, would keep the memory of a cache that is gone.
    _PROBLEMS[kind] = problem.of_step(*(array[:0].copy() for array in (query, key, value)))
    return problem
