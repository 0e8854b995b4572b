"""The examples of the original NumPy release work with nothing but the import changed."""

import numpy as np
import pytest

import attention_xp
from attention_xp import (
    attention_score_visualization,
    causal_mask,
    create_causal_mask,
    create_look_ahead_mask,
    create_padding_mask,
    cross_attention,
    dropout,
    layer_normalization,
    learned_positional_encoding,
    multi_head_attention,
    multi_head_self_attention,
    padding_mask,
    positional_encoding,
    scaled_dot_product_attention,
    self_attention,
    softmax,
)

SHORT_NAMES = {
    "sdp_attention": "scaled_dot_product_attention",
    "mha": "multi_head_attention",
    "self_attn": "self_attention",
    "cross_attn": "cross_attention",
    "pos_encoding": "positional_encoding",
    "causal_mask": "create_causal_mask",
    "padding_mask": "create_padding_mask",
}


@pytest.fixture
def rng():
    """NumPy's generator, as the examples use it."""
    return np.random.default_rng(0)


@pytest.mark.parametrize(("short", "long"), SHORT_NAMES.items(), ids=SHORT_NAMES)
def test_short_names_are_the_same_objects(short, long):
    assert getattr(attention_xp, short) is getattr(attention_xp, long)


def test_scaled_dot_product_attention(rng):
    q, k, v = (rng.standard_normal((32, 8, 10, 64)) for _ in range(3))
    output, weights = scaled_dot_product_attention(q, k, v)
    assert output.shape == (32, 8, 10, 64)
    assert weights.shape == (32, 8, 10, 10)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0)


def test_scaled_dot_product_attention_with_a_causal_mask_on_three_axes(rng):
    q, k, v = (rng.standard_normal((32, 10, 64)) for _ in range(3))
    output, weights = scaled_dot_product_attention(q, k, v, mask=create_causal_mask(10))
    assert output.shape == (32, 10, 64)
    assert weights.shape == (32, 10, 10)
    assert (np.triu(weights, k=1) == 0.0).all()


def test_padding_and_causal_masks_add_up(rng):
    tokens = np.asarray([[5, 7, 9, 0, 0], [3, 1, 4, 1, 0]])
    mask = create_padding_mask(tokens) + create_causal_mask(5)
    assert mask.shape == (2, 1, 5, 5)
    x = rng.standard_normal((2, 5, 8))
    output, weights = self_attention(x, d_model=8, mask=mask)
    assert np.isfinite(output).all()
    assert (weights[0, :, 3:] == 0.0).all()


def test_multi_head_attention(rng):
    x = rng.standard_normal((32, 10, 512))
    output, weights = multi_head_attention(x, x, x, num_heads=8, d_model=512)
    assert output.shape == (32, 10, 512)
    assert weights.shape == (32, 8, 10, 10)


def test_multi_head_attention_with_a_mask(rng):
    x = rng.standard_normal((2, 10, 512))
    output, weights = multi_head_attention(x, x, x, 8, 512, create_causal_mask(10), 0.1)
    assert output.shape == (2, 10, 512)
    assert (np.triu(weights, k=1) == 0.0).all()


def test_multi_head_attention_needs_a_divisible_width(rng):
    x = rng.standard_normal((2, 10, 512))
    with pytest.raises(ValueError, match="divisible"):
        multi_head_attention(x, x, x, num_heads=7, d_model=512)


def test_self_attention(rng):
    output, weights = self_attention(rng.standard_normal((32, 10, 512)), d_model=512)
    assert output.shape == (32, 10, 512)
    assert weights.shape == (32, 10, 10)


def test_multi_head_self_attention(rng):
    output, weights = multi_head_self_attention(rng.standard_normal((4, 10, 512)), num_heads=8, d_model=512)
    assert output.shape == (4, 10, 512)
    assert weights.shape == (4, 8, 10, 10)


def test_cross_attention(rng):
    decoder, encoder = rng.standard_normal((32, 10, 512)), rng.standard_normal((32, 20, 512))
    output, weights = cross_attention(decoder, encoder, d_model=512)
    assert output.shape == (32, 10, 512)
    assert weights.shape == (32, 10, 20)


def test_masks():
    mask = create_padding_mask(np.asarray([[1, 2, 0]]), pad_token=0)
    np.testing.assert_array_equal(mask, [[[[0.0, 0.0, -np.inf]]]])
    np.testing.assert_array_equal(padding_mask(np.asarray([[1, 2, 0]])), mask)
    expected = np.asarray([[[[0.0, -np.inf], [0.0, 0.0]]]])
    for create in (create_causal_mask, create_look_ahead_mask, causal_mask):
        np.testing.assert_array_equal(create(2), expected)


def test_positional_encodings():
    table = positional_encoding(seq_len=100, d_model=512)
    assert table.shape == (100, 512)
    np.testing.assert_array_equal(table[0, :4], [0.0, 1.0, 0.0, 1.0])
    assert positional_encoding(10, 16, n=100.0).shape == (10, 16)
    assert learned_positional_encoding(seq_len=100, d_model=512).shape == (100, 512)


def test_utilities(rng):
    x = rng.standard_normal((2, 3, 8))
    np.testing.assert_allclose(softmax(x).sum(axis=-1), 1.0)
    np.testing.assert_allclose(softmax(x, axis=1).sum(axis=1), 1.0)
    normalized = layer_normalization(x, np.ones(8), np.zeros(8))
    np.testing.assert_allclose(normalized.mean(axis=-1), 0.0, atol=1e-12)
    dropped = dropout(np.ones((100, 100)), 0.1)
    assert 0.85 < (dropped != 0.0).mean() < 0.95
    np.testing.assert_array_equal(dropout(x, rate=0.0), x)


def test_visualization(rng):
    _, weights = multi_head_attention(*([rng.standard_normal((2, 3, 8))] * 3), num_heads=2, d_model=8)
    view = attention_score_visualization(weights, tokens=["the", "cat", "sat"])
    assert view["weights"].shape == view["shape"] == (3, 3)
    assert view["tokens"] == ["the", "cat", "sat"]
    assert 0.0 <= view["min_attention"] <= view["max_attention"] <= 1.0
