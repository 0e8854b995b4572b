"""Combinations: what they say, what they inherit, what they refuse."""

import copy
import operator

import numpy as np
import pytest
from hypothesis import given, strategies as st

from attention_xp._scores.region import Span
from attention_xp.masks import (
    BlockMask,
    CausalMask,
    FunctionMask,
    GlobalMask,
    LengthMask,
    Mask,
    PrefixMask,
    SegmentMask,
    StridedMask,
    WindowMask,
)
from tests.masks._cases import CASES

leaves = st.sampled_from(list(CASES)).map(lambda name: CASES[name].build(np.asarray))
trees = st.recursive(
    leaves,
    lambda t: st.one_of(st.builds(operator.and_, t, t), st.builds(operator.or_, t, t), st.builds(operator.invert, t)),
    max_leaves=6,
)


def whole(mask):
    """All pairs of all batch items and heads."""
    return np.broadcast_to(mask.to_array(9, 10, 1), (2, 3, 9, 10))


@given(leaves, leaves)
def test_operators(one, other):
    np.testing.assert_array_equal(whole(one & other), whole(one) & whole(other))
    np.testing.assert_array_equal(whole(one | other), whole(one) | whole(other))
    np.testing.assert_array_equal(whole(~one), ~whole(one))


@given(trees, st.integers(0, 8), st.integers(0, 9), st.data())
def test_combinations_are_never_wrong_about_a_rectangle(mask, row, key, data):
    last_row, last_key = data.draw(st.integers(row, 8)), data.draw(st.integers(key, 9))
    b, h = data.draw(st.sampled_from([(0, 0), (1, 2), (None, 1), (None, None), (1, None)]))
    possible, certain = mask.reach(Span(np, row, last_row, row + 1, last_row + 1, key, last_key, b, h))
    picked = whole(mask)[slice(None) if b is None else slice(b, b + 1), slice(None) if h is None else slice(h, h + 1)]
    truth = picked[..., row : last_row + 1, key : last_key + 1]
    assert type(possible) is type(certain) is bool
    assert possible or not truth.any()
    assert truth.all() or not certain


RULES = {
    CausalMask(): (True, True),
    WindowMask(1, 2): (True, True),
    StridedMask(2): (False, True),
    PrefixMask(2): (False, False),
    LengthMask(2): (False, False),
    GlobalMask(np.zeros(3, bool)): (False, False),
    SegmentMask(np.zeros(3, int)): (False, False),
    BlockMask(np.ones((1, 1), bool), 2): (False, False),
    FunctionMask(lambda b, h, q, k: q > k): (False, False),
}


@pytest.mark.parametrize(("mask", "expected"), RULES.items(), ids=repr)
def test_properties_and_their_inheritance(mask, expected):
    assert (mask.relative, mask.shift_invariant) == expected
    assert ((~mask).relative, (~mask).shift_invariant) == expected
    for combined in (mask & CausalMask(), CausalMask() | mask):
        assert combined.relative
        assert combined.shift_invariant is expected[1]
    assert (mask & PrefixMask(3)).relative is expected[0]
    assert not (mask | PrefixMask(3)).shift_invariant


@pytest.mark.parametrize("mask", RULES, ids=repr)
def test_equality(mask):
    assert mask == copy.copy(mask)
    assert (mask & CausalMask()) == (mask & CausalMask())
    assert hash(mask & CausalMask()) == hash(mask & CausalMask())
    assert (mask & CausalMask()) != (mask | CausalMask())
    assert mask != StridedMask(7)
    assert sum(mask == other for other in RULES) == 1


def test_equality_is_by_value_of_numbers_and_identity_of_arrays():
    lengths = np.asarray([1, 2])
    assert WindowMask(1, 2) == WindowMask(np.int64(1), 2)
    assert LengthMask(lengths) == LengthMask(lengths)
    assert LengthMask(lengths) != LengthMask(lengths.copy())
    assert LengthMask(2) != PrefixMask(2)


@pytest.mark.parametrize("other", [True, 1, None, [[True]], np.ones((2, 2)), np.ones((2, 2), int), "CausalMask"])
@pytest.mark.parametrize("operation", [operator.and_, operator.or_])
def test_only_masks_combine(other, operation):
    with pytest.raises(TypeError):
        operation(CausalMask(), other)
    with pytest.raises(TypeError):
        operation(other, CausalMask())


def test_leading_axes_that_do_not_fit():
    mask = LengthMask(np.asarray([1, 2])) & LengthMask(np.asarray([1, 2, 3]))
    with pytest.raises(ValueError, match=r"leading axes \(2, 1\) and \(3, 1\) .* do not broadcast"):
        mask.to_array(2, 2)


def test_a_rule_of_ones_own():
    class Even(Mask):
        def allowed(self, region):
            return region.kv_idx % 2 == 0

    assert (Even() & CausalMask()).to_array(2, 3).tolist() == [[True, False, False]] * 2
    assert Even().density(3, 4) == 0.5
    assert repr(Even()) == "Even()"
    assert Even() == Even()


def test_a_rule_must_say_something():
    with pytest.raises(NotImplementedError, match="Mask must define allowed"):
        Mask().to_array(1, 1)
