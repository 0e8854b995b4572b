"""Safe masking: rows without keys, and what lies where nobody may look."""

import numpy as np
import pytest

from attention_xp import create_causal_mask, create_padding_mask, flash_attention, scaled_dot_product_attention
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs, normal

SHAPE = (2, 4, 5, 8)
HALF = np.arange(5)[:, None] % 2 == 0

EMPTY_ROWS = {
    "boolean mask": {"mask": np.broadcast_to(HALF, (5, 5))},
    "float mask": {"mask": np.where(HALF, 0.0, -np.inf) * np.ones(5)},
    "mask for whole rows": {"mask": HALF},
    "masks that meet nowhere": {"mask": np.triu(np.ones((5, 5), bool), 1) | HALF, "window": 0},
    "empty batch item": {"key_lengths": np.asarray([0, 5])},
    "no key at all": {"key_lengths": 0},
    "before the first key": {"is_causal": True, "query_offset": -3},
    "window past the last key": {"window": (1, 1), "query_offset": 4},
}

EXCLUDED = {
    "boolean mask": {"mask": np.arange(5) < 3},
    "float mask": {"mask": np.where(np.arange(5) < 3, 0.0, -np.inf)},
    "padding": {"mask": (np.arange(5) < 3).reshape(1, 1, 1, 5)},
    "key lengths": {"key_lengths": np.asarray([3, 3])},
    "key length": {"key_lengths": 3},
    "causal": {"is_causal": True, "query_offset": -2},
    "window": {"window": (None, 0), "query_offset": -2},
    "mask and bias": {"mask": np.arange(5) < 3, "bias": normal(5, 5), "softcap": 2.0},
}


def arrays(library, options):
    """Make the arrays among the options."""
    return {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


def attend(library, impl, q, k, v, **options):
    """Return output, weights and log-sum-exp as NumPy arrays."""
    q, k, v = (library.array(x) for x in (q, k, v))
    output, weights = scaled_dot_product_attention(q, k, v, impl=impl, **options)
    bare, lse = flash_attention(q, k, v, impl=impl, return_lse=True, **options)
    assert_close(bare, to_numpy(output), library)
    return to_numpy(output), to_numpy(weights), to_numpy(lse)


@pytest.mark.parametrize("options", EMPTY_ROWS.values(), ids=EMPTY_ROWS)
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
def test_rows_with_nothing_to_attend_are_zero(library, make, impl, options, with_sinks):
    options = arrays(library, options)
    sinks = normal(4) if with_sinks else np.full(4, -np.inf)
    _, kept, _ = attend(library, impl, *inputs(SHAPE), **options)
    output, weights, lse = attend(
        library, impl, *inputs(SHAPE), **options, **({"sinks": make(sinks)} if with_sinks else {})
    )
    empty = ~np.any(kept, axis=-1)
    assert empty.any()
    np.testing.assert_array_equal(output[empty], 0.0)
    np.testing.assert_array_equal(weights[empty], 0.0)
    expected = np.broadcast_to(sinks[:, None], empty.shape)
    np.testing.assert_allclose(lse[empty], expected[empty], rtol=1e-6)
    assert np.isfinite(output).all()


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
def test_no_keys(library, make, impl, with_sinks):
    q, k, v = inputs((2, 4, 5, 8), (2, 2, 0, 8), (2, 2, 0, 3))
    sinks = {"sinks": make(normal(4))} if with_sinks else {}
    output, weights, lse = attend(library, impl, q, k, v, **sinks)
    np.testing.assert_array_equal(output, np.zeros((2, 4, 5, 3)))
    assert weights.shape == (2, 4, 5, 0)
    expected = normal(4)[:, None] if with_sinks else -np.inf
    np.testing.assert_allclose(lse, np.broadcast_to(expected, (2, 4, 5)), rtol=1e-6)


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
def test_rows_of_padding_are_zero_and_minus_infinity(library, make, impl, with_sinks):
    sinks = {"sinks": make(normal(4))} if with_sinks else {}
    output, weights, lse = attend(library, impl, *inputs(SHAPE), query_lengths=make([2, 5]), **sinks)
    np.testing.assert_array_equal(output[0, :, 2:], 0.0)
    np.testing.assert_array_equal(weights[0, :, 2:], 0.0)
    np.testing.assert_array_equal(lse[0, :, 2:], -np.inf)
    assert (weights[0, :, :2] > 0).all()
    assert (weights[1] > 0).all()


@pytest.mark.parametrize("beyond", [5, 9, 2**29])
@pytest.mark.parametrize("name", ["key_lengths", "query_lengths"])
def test_lengths_may_exceed_the_arrays(library, impl, name, beyond):
    for found, expected in zip(
        attend(library, impl, *inputs(SHAPE), **{name: beyond}), attend(library, impl, *inputs(SHAPE)), strict=True
    ):
        assert_close(library.array(found), expected, library)


@pytest.mark.with_nan
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["key", "value", "both"])
@pytest.mark.parametrize("options", EXCLUDED.values(), ids=EXCLUDED)
def test_excluded_keys_and_values_never_reach_the_output(library, impl, options, where, bad):
    options = arrays(library, options)
    q, k, v = inputs(SHAPE)
    expected = attend(library, impl, q, k, v, **options)
    k[..., 3:, :] = bad if where != "value" else k[..., 3:, :]
    v[..., 3:, 1] = bad if where != "key" else v[..., 3:, 1]
    actual = attend(library, impl, q, k, v, **options)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.with_nan
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("where", ["key", "value"])
def test_earlier_rows_do_not_see_what_later_rows_see(library, impl, where, bad):
    q, k, v = inputs(SHAPE)
    expected = attend(library, impl, q, k, v, is_causal=True)
    {"key": k, "value": v}[where][..., 3, :] = bad
    actual = attend(library, impl, q, k, v, is_causal=True)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one[:, :, :3], other[:, :, :3], rtol=1e-5, atol=1e-6)


@pytest.mark.with_nan
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["full", "causal"])
def test_nan_that_may_be_attended_is_not_hidden(library, impl, where, options):
    arrays_ = inputs(SHAPE)._asdict()
    arrays_[where][..., 0, :] = np.nan
    output, _, _ = attend(library, impl, *arrays_.values(), **options)
    rows = slice(0, 1) if where == "query" else slice(None)
    assert np.isnan(output[:, :, rows]).all()


@pytest.mark.parametrize("as_array", [False, True], ids=["is_causal", "mask"])
def test_weights_above_the_diagonal_are_exactly_zero(library, xp, make, impl, device, as_array):
    options = {"is_causal": True}
    if as_array:
        options = {"mask": create_causal_mask(5, xp=xp, dtype=xp.float32, device=device)}
    _, weights, _ = attend(library, impl, *inputs(SHAPE), **options)
    above = np.triu(np.ones((5, 5), bool), 1)
    assert (weights[..., above] == 0.0).all()
    assert (weights[..., ~above] > 0.0).all()


@pytest.mark.parametrize("as_array", [False, True], ids=["key_lengths", "mask"])
def test_weights_on_padding_are_exactly_zero(library, make, impl, as_array):
    tokens = make([[7, 3, 9, 0, 0], [4, 1, 1, 5, 0]])
    options = {"mask": create_padding_mask(tokens)} if as_array else {"key_lengths": make([3, 4])}
    _, weights, _ = attend(library, impl, *inputs(SHAPE), **options)
    assert (weights[0, ..., 3:] == 0.0).all()
    assert (weights[1, ..., 4:] == 0.0).all()
    assert (weights[0, ..., :3] > 0.0).all()


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"mask": np.arange(5) < 3}, {"key_lengths": np.asarray([3, 5])}],
    ids=["causal", "mask", "lengths"],
)
def test_excluded_keys_do_not_change_the_other_weights(library, make, impl, options):
    options = arrays(library, options)
    q, k, v = inputs(SHAPE)
    _, weights, lse = attend(library, impl, q, k, v, **options)
    k[0, :, 3:] += 1e4
    _, others, lse_of_others = attend(library, impl, q, k, v, **options)
    rows = slice(0, 3)
    np.testing.assert_allclose(others[0, :, rows], weights[0, :, rows], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse_of_others[0, :, rows], lse[0, :, rows], rtol=1e-5)


def test_boolean_and_additive_masks_say_the_same(library, make, impl):
    q, k, v = (make(x) for x in inputs(SHAPE))
    keep = normal(5, 5) > 0
    boolean, _ = scaled_dot_product_attention(q, k, v, make(keep), impl=impl)
    additive, _ = scaled_dot_product_attention(q, k, v, make(np.where(keep, 0.0, -np.inf)), impl=impl)
    assert_close(boolean, to_numpy(additive), library)
