"""Products that are cut into blocks of keys are those of the whole, whatever is left behind the last block."""

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.walkers.numpy import at_once, few_rows
from tests import reference
from tests._inputs import inputs, normal


@pytest.mark.parametrize("has_kernels", [False, True])
@pytest.mark.parametrize("m", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("n", [0, 1, 16, 240, 600])
def test_products_of_few_rows(n, m, has_kernels, monkeypatch):
    monkeypatch.setattr(few_rows, "has_small_kernels", lambda: has_kernels)
    monkeypatch.setattr(few_rows, "SMALL_PRODUCT", 5000)
    rows, whole = normal(3, 2, m, 7), np.full((3, 2, m, 700), np.nan)
    # Heads that lie between keys, and one for all.
    keys = normal(3, 700, 2, 7, seed=1).swapaxes(1, 2)[:, :1, 50 : 50 + n]
    few_rows.scores_into(whole[..., 30 : 30 + n], rows, keys)
    np.testing.assert_allclose(whole[..., 30 : 30 + n], rows @ keys.swapaxes(-1, -2), atol=1e-12)
    assert np.isnan(np.delete(whole, np.s_[30 : 30 + n], axis=-1)).all()
    weights = normal(3, 2, m, n, seed=2)
    np.testing.assert_allclose(few_rows.weighted(weights, keys), weights @ keys, atol=1e-12)


def test_products_are_cut_as_far_as_that_is_faster(monkeypatch):
    for has_kernels, expected in ((True, [2, 16]), (False, [])):
        monkeypatch.setattr(few_rows, "has_small_kernels", lambda has=has_kernels: has)
        assert [m for m in (0, 1, 2, 16, 17) if few_rows.is_in_blocks(m)] == expected


SHAPES = [
    ((2, 6, 1, 8), (2, 2, 300, 8), (2, 2, 300, 5)),
    ((2, 4, 3, 8), (1, 2, 300, 8), (1, 2, 300, 8)),  # keys for all items
    ((3, 1, 8), (3, 300, 8), (3, 300, 8)),
    ((2, 8), (300, 8), (300, 8)),
]
OPTIONS = [
    {},
    {"is_causal": True, "query_offset": 200},
    {"window": (20, 3), "query_offset": 150, "softcap": 0.5},
    {"key_lengths": np.asarray([250, 0]), "query_lengths": np.asarray([1, 1])},
]


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_few_rows_by_jobs_and_tiles(shapes, options, impl, monkeypatch):
    """Where the formula is handed out to threads, in jobs of a group, it says what it always says, and so do tiles."""
    monkeypatch.setattr(few_rows, "has_small_kernels", lambda: True)
    monkeypatch.setattr(few_rows, "SMALL_PRODUCT", 5000)
    monkeypatch.setattr(at_once, "_MANY", 0)
    monkeypatch.setattr(at_once, "_SCORES", 1)
    arrays = inputs(*shapes)
    if len(shapes[0]) == 4:
        options = {**options, "sinks": normal(shapes[0][1]), "bias": normal(shapes[0][1], 1, 300)}
    elif "key_lengths" in options:
        options = {"key_lengths": 250}
    found = flash_attention(*arrays, return_lse=True, impl=impl, **options)
    whole = reference.attention(*arrays, **options)
    np.testing.assert_allclose(found[0], whole.output, atol=1e-12)
    np.testing.assert_allclose(found[1], whole.lse, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_excluded_may_be_anything(bad, monkeypatch):
    monkeypatch.setattr(few_rows, "has_small_kernels", lambda: True)
    arrays = inputs((1, 4, 2, 8), (1, 2, 40, 8))
    expected = flash_attention(*arrays, is_causal=True, query_offset=30, impl="dense")
    arrays.key[..., 32:, 1], arrays.value[..., 32:, 2] = bad, bad
    output = flash_attention(*arrays, is_causal=True, query_offset=30, impl="dense")
    np.testing.assert_allclose(output, expected, atol=1e-14)
    arrays.value[..., 31, 0] = bad  # which the second row attends alone
    output = flash_attention(*arrays, is_causal=True, query_offset=30, impl="dense")
    np.testing.assert_allclose(output[..., 0, :], expected[..., 0, :], atol=1e-14)
    np.testing.assert_array_equal(output[..., 1, 0], bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_key_that_is_not_finite_is_nan_to_those_who_attend_it(bad, monkeypatch):
    """Under rules, whatever products it is in: beside a product that is minus infinity, others would count."""
    arrays = inputs((1, 4, 2, 8), (1, 2, 40, 8))
    arrays.key[..., 31, 1] = bad
    for has_kernels in (False, True):
        monkeypatch.setattr(few_rows, "has_small_kernels", lambda has=has_kernels: has)
        output = flash_attention(*arrays, is_causal=True, query_offset=30, impl="dense")
        np.testing.assert_array_equal(np.isnan(output).all(axis=(0, 1, 3)), [False, True])
        assert not np.isnan(output[..., 0, :]).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_32_and_64_bits(dtype):
    arrays = [x.astype(dtype) for x in inputs((1, 8, 1, 64), (1, 2, 2000, 64))]
    found, whole = flash_attention(*arrays), reference.attention(*arrays)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, whole.output, atol=1e-6 if dtype == "float32" else 1e-14)
