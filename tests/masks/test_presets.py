"""Patterns from the literature."""

import numpy as np
import pytest

from attention_xp.masks import BlockMask, GlobalMask, WindowMask, bigbird_mask, longformer_mask, sparse_transformer_mask

SIZES = {"num_random": 2, "num_global": 1, "window_blocks": 3}


def test_longformer():
    is_global = np.arange(12) == 5
    assert longformer_mask(2) == WindowMask(2, 2)
    assert longformer_mask((3, 0), is_global) == WindowMask(3, 0) | GlobalMask(is_global)
    q, k = np.arange(12)[:, None], np.arange(12)
    expected = (abs(q - k) <= 2) | (q == 5) | (k == 5)
    np.testing.assert_array_equal(longformer_mask(2, is_global).to_array(12, 12), expected)


@pytest.mark.parametrize("seed", range(5))
def test_bigbird(seed):
    mask = bigbird_mask(16, 4, **SIZES, rng=seed)
    i, j = np.arange(16)[:, None], np.arange(16)
    fixed = (abs(i - j) <= 1) | (i < 1) | (j < 1)
    assert isinstance(mask, BlockMask)
    assert mask.block_size == (4, 4)
    assert mask.layout[fixed].all()
    assert (mask.layout & ~fixed).sum(axis=1).tolist() == [0] + [2] * 15


def test_bigbird_draws_what_is_left():
    assert bigbird_mask(4, 2, num_random=9, num_global=0, window_blocks=1, rng=0).layout.all()
    assert bigbird_mask(3, 2, num_random=0, num_global=0, window_blocks=1, rng=0).layout.tolist() == np.eye(3).tolist()


def test_bigbird_draws_every_block_equally_often():
    source = np.random.default_rng(0)
    drawn = sum(bigbird_mask(8, 1, num_random=2, num_global=0, window_blocks=1, rng=source).layout for _ in range(2000))
    others = drawn[~np.eye(8, dtype=bool)]
    np.testing.assert_allclose(others, 2000 * 2 / 7, rtol=0.15)


def test_bigbird_is_reproducible():
    def draw(rng):
        return bigbird_mask(16, 4, **SIZES, rng=rng).layout

    np.testing.assert_array_equal(draw(7), draw(7))
    np.testing.assert_array_equal(draw(7), draw(np.random.default_rng(7)))
    assert (draw(7) != draw(8)).any()


def test_sparse_transformer_is_causal_by_default_strided():
    assert sparse_transformer_mask(4) == sparse_transformer_mask(4, "strided")
    for kind in ("strided", "fixed"):
        array = sparse_transformer_mask(4, kind).to_array(20, 20)
        assert not np.triu(array, 1).any()
        assert array.diagonal().all()
