"""The usual step of decoding on NumPy, without what it has no need of.

One row comes to each item of a static or a paged cache, and attends all that are there: so most steps of a program are, and what
they do besides the attention would take as long as that where keys are few. Whatever is not as usual goes the longer way, which
checks and says it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from attention_xp._engine.kernels.choose import attend_step
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._typing import Array
from attention_xp.cache._caches import PagedCache, StaticCache
from attention_xp.cache._checked import has_passed, kind_of
from attention_xp.cache._written import claimed, claimed_by_all

__all__ = ["usual_step"]

_PLAIN = {"is_causal", "dropout_rate"}  # the options of a usual step: a single row is causal anyway
_PROBLEMS: dict[Any, Problem] = {}  # of each kind of step: they differ in their arrays and in the number of keys alone
_MOST = 64  # of these
_WANTED = Wanted()  # the output alone
_State = Callable[[Array, Array, Array], Problem]  # states the problem of a step


def usual_step(cache: Any, query: Array, key: Array, value: Array, how: dict[str, Any]) -> tuple[Array, Any] | None:
    """Return the output and the cache after a step; ``None`` where it is not a usual one, and nothing is done."""
    step = _STEPS.get(type(cache))
    if step is None or not how.keys() <= _PLAIN:
        return None
    kind = kind_of(cache, query=query, key=key, value=value)
    alike = None if kind is None else _PROBLEMS.get(kind)
    if alike is None and not has_passed(kind):
        return None
    is_causal, rate = how.get("is_causal", False), how.get("dropout_rate", 0.0)
    if type(is_causal) is not bool or type(rate) is not float or rate != 0.0 or not query.shape[2] == key.shape[2] == 1:
        return None
    return step(cache, partial(_first_problem, kind) if alike is None else alike.of_step, query, key, value)


def _static(
    cache: StaticCache[Any], state: _State, query: Array, key: Array, value: Array
) -> tuple[Array, StaticCache[Any]] | None:
    """Take a step of items of one length."""
    keys, values, lengths = cache
    known = lengths.tolist()
    first = known[0] if known else -1
    if known.count(first) != len(known) or not 0 <= first < keys.shape[2] or not claimed_by_all(keys, values, first):
        return None
    end = first + 1
    keys[:, :, first:end], values[:, :, first:end] = key, value
    problem = state(query, keys[:, :, :end], values[:, :, :end])
    return attend_step(problem).output, StaticCache(keys, values, lengths + 1)


def _paged(
    cache: PagedCache[Any], state: _State, query: Array, key: Array, value: Array
) -> tuple[Array, PagedCache[Any]] | None:
    """Take a step of items that grow within their last page, or into the free page behind it."""
    from attention_xp.cache._where_they_lie import attend_stated, pages_of  # noqa: PLC0415  # imports NumPy

    keys, values, table, lengths, references = cache
    known, size = lengths.tolist(), keys.shape[2]
    pages, slots = pages_of(table, known, size), [n % size for n in known]
    targets = _targets(cache, known, pages)
    if targets is None or not claimed(keys, values, targets, slots, [slot + 1 for slot in slots]):
        return None
    for b, (page, slot) in enumerate(zip(targets, slots, strict=True)):
        keys[page, :, slot], values[page, :, slot] = key[b, :, 0], value[b, :, 0]
    if 0 in slots:
        table, references = _with_pages(cache, pages, targets)
    after = PagedCache(keys, values, table, lengths + 1, references)

    def stated(key: Array, value: Array, **more: Array) -> Problem:
        # With lengths of items, problems of a kind are not alike.
        return Problem.of(query, key, value, None, 0.0, more) if more else state(query, key, value)  # type: ignore[arg-type]

    return attend_stated(stated, after[:4], pages, [n + 1 for n in known], _WANTED).output, after


def _targets(cache: PagedCache[Any], known: list[int], pages: list[list[int]]) -> list[int] | None:
    """Return the page of the next row of each item, its last or the one behind that; ``None`` where one needs another."""
    (count, _, size, _), most, targets = cache.key_pages.shape, cache.block_table.shape[1], list[int]()
    for own, n in zip(pages, known, strict=True):
        if not 0 < n < most * size or min(own) < 0 or max(own) >= count:
            return None
        page = own[-1] + (n % size == 0)
        if page == count or cache.references.item(page) != (n % size > 0):
            return None
        targets.append(page)
    return targets if 0 < len(set(targets)) == len(targets) else None  # items with the same last page want the same


def _with_pages(cache: PagedCache[Any], pages: list[list[int]], targets: list[int]) -> tuple[Array, Array]:
    """Return the table and the references in which each item has its target; `pages` are changed to hold it as well."""
    table, references = cache.block_table.copy(), cache.references.copy()
    for row, own, page in zip(table, pages, targets, strict=True):
        if page != own[-1]:
            row[len(own)] = page
            references[page] = 1
            own.append(page)
    return table, references


_STEPS: dict[type, Callable[..., tuple[Array, Any] | None]] = {StaticCache: _static, PagedCache: _paged}


def _first_problem(kind: Any, query: Array, key: Array, value: Array) -> Problem:
    """Return the problem of the first step of a kind, which is kept for the others."""
    if len(_PROBLEMS) >= _MOST:
        _PROBLEMS.clear()
    problem = Problem.of(query, key, value, None, 0.0, {})
    # A view, even of nothing, would keep the memory of a cache that is gone.
    _PROBLEMS[kind] = problem.of_step(*(array[:0].copy() for array in (query, key, value)))
    return problem
