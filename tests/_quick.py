"""Fewer cases of a test: every value of each of its parameters, but not every combination of them.

Values that say little more than others do, and take long to compile, are marked as rare and left out as well.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

__all__ = ["combinations", "covering", "some_rare"]


def covering(cases: Sequence[Mapping[str, int]]) -> set[int]:
    """Choose cases that have each value of each parameter among them, and each about as often as the others."""
    unseen = {value for case in cases for value in case.items()}
    used: Counter[tuple[str, int]] = Counter()
    chosen: set[int] = set()
    while unseen:
        news = [len(unseen & case.items()) for case in cases]
        candidates = [i for i, new in enumerate(news) if new == max(news)]
        best = min(candidates, key=lambda i: sum(used[value] for value in cases[i].items()))
        chosen.add(best)
        used.update(cases[best].items())
        unseen -= cases[best].items()
    return chosen


def combinations(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """The cases of which other cases of the same test on the same library have every value."""
    left_out = set()
    tests = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            tests[item.parent, item.originalname, item.callspec.params.get("library")].append(item)
    for cases in tests.values():
        # A value is the same object in all cases that have it; not every value can be hashed.
        kept = covering([{name: id(value) for name, value in item.callspec.params.items()} for item in cases])
        left_out.update(item for i, item in enumerate(cases) if i not in kept)
    return left_out


def some_rare(cases: Mapping[str, Any], is_rare: Callable[[str], bool]) -> list[Any]:
    """The cases of a test, of one value or a tuple of them each, with those marked that a quick run leaves out."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), id=name, marks=[pytest.mark.rare] if is_rare(name) else ()
        )
        for name, case in cases.items()
    ]
