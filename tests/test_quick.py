"""A quick run has every value of every parameter of a test."""

import itertools
from collections import Counter

import pytest

from tests._quick import covering, some_rare


@pytest.mark.parametrize("sizes", [(1,), (5,), (2, 7), (2, 3, 5), (4, 4, 4)], ids=str)
def test_every_value_of_products_in_as_few_cases_as_can_be(sizes):
    cases = [dict(enumerate(values)) for values in itertools.product(*map(range, sizes))]
    chosen = [cases[i] for i in covering(cases)]
    assert len(chosen) == max(sizes)
    for name, size in enumerate(sizes):
        often = Counter(case[name] for case in chosen)
        assert set(often) == set(range(size))
        assert max(often.values()) - min(often.values()) <= 1


def test_cases_that_are_no_product():
    cases = [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}, {"a": 2}, {"a": 0, "b": 0}]
    assert covering(cases) == {0, 2, 3}


def test_a_case_without_parameters_stays():
    assert covering([{"library": 0}]) == {0}


def test_cases_keep_their_names_and_some_are_marked():
    one, other = some_rare({"one": 1, "other": (2, 3)}, lambda name: name == "other")
    assert (one.id, one.values, [mark.name for mark in one.marks]) == ("one", (1,), [])
    assert (other.id, other.values, [mark.name for mark in other.marks]) == ("other", (2, 3), ["rare"])
