"""What the shapes of the inputs agree on."""

import pytest

from attention_xp._checks.arrays import check_inputs, fits, shapes
from tests._inputs import normal


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((), (2, 3), True),
        ((3,), (2, 3), True),
        ((1, 3), (2, 3), True),
        ((2, 1), (2, 3), True),
        ((2,), (2, 3), False),
        ((4, 3), (1, 3), False),
        ((1, 2, 3), (2, 3), False),
        ((0,), (2, 0), True),
        ((0,), (2, 1), False),
    ],
)
def test_fits_never_enlarges(shape, target, expected):
    assert fits(shape, target) is expected


def test_shapes_are_listed_by_name(make):
    assert shapes(query=make(normal(2, 3)), key=make(normal(4))) == "got query (2, 3), key (4,)"


@pytest.mark.parametrize(
    ("query", "key", "expected"),
    [
        ((5, 8), (7, 8), ((), None, None)),
        ((2, 5, 8), (2, 7, 8), ((2,), None, None)),
        ((1, 5, 8), (3, 7, 8), ((3,), None, None)),
        ((2, 6, 5, 8), (2, 3, 7, 8), ((2,), 6, 3)),
        ((4, 1, 6, 5, 8), (1, 2, 6, 7, 8), ((4, 2), 6, 6)),
        ((0, 6, 5, 8), (1, 6, 7, 8), ((0,), 6, 6)),
    ],
)
def test_sizes(make, xp, query, key, expected):
    k = make(normal(*key))
    assert tuple(check_inputs(xp, make(normal(*query)), k, k)) == expected
