"""One call, or several, of every numerical function: what transformations are tried on."""

import numpy as np

import attention_xp as ax
from tests._inputs import inputs, normal

__all__ = ["CALLS", "QKV", "X"]

QKV = inputs((2, 4, 5, 8), (2, 2, 7, 8))
X = normal(2, 5, 8)
KEEP = normal(2, 1, 5, 7) > -0.5
POSITIONS = np.random.default_rng(0).integers(0, 60, (2, 2, 5))


def every_option(q, k, v, mask, bias, sinks, lengths):
    """Attention with all options that are arrays, and all that are not."""
    return ax.flash_attention(
        q, k, v, mask, 0.5, rng=1, bias=bias, sinks=sinks, is_causal=True, window=(4, 1), query_offset=lengths,
        query_lengths=lengths, key_lengths=lengths, scale=0.5, softcap=2.0, return_lse=True,
        score_mod=lambda score, b, h, q_idx, kv_idx: 0.5 * score,
    )  # fmt: skip


def with_params(x, *params):
    """Multi-head attention with projections and biases."""
    return ax.multi_head_self_attention(x, 2, 8, params=ax.MultiHeadParams(*params))


def every_rotary_option(x, positions):
    """Rotary positions of two axes, scaled."""
    return ax.rotary_embedding(x, positions, base=100.0, sections=(2, 2), axial=True, scaling=ax.YarnScaling(4.0, 16))


def rotary_scaling(x, positions):
    """Rotary positions under the scalings that look at the largest."""
    dynamic = ax.rotary_embedding(x, positions, scaling=ax.DynamicNTKScaling(2.0, 16))
    return dynamic, ax.rotary_embedding(x, positions, scaling=ax.LongRopeScaling([1.0] * 4, [4.0] * 4, 16))


def rotary_rows(x, positions, table):
    """Rotary positions with cosines and sines from a table."""
    cache = ax.RotaryCache(table, 0.5 * table)
    return ax.rotary_embedding(x, positions, sections=(1, 3), cache=cache), ax.rotary_embedding(x, cache=cache)


CALLS = {
    "scaled_dot_product_attention": (ax.scaled_dot_product_attention, QKV),
    "no weights": (lambda q, k, v: ax.scaled_dot_product_attention(q, k, v, return_weights=False)[0], QKV),
    "flash_attention": (ax.flash_attention, QKV),
    "log-sum-exp": (lambda q, k, v: ax.flash_attention(q, k, v, return_lse=True), QKV),
    "causal": (lambda q, k, v: ax.flash_attention(q, k, v, is_causal=True, query_offset=2), QKV),
    "tiles": (lambda q, k, v: ax.flash_attention(q, k, v, impl="tiled", tile=(2, 3), return_lse=True), QKV),
    "boolean mask": (ax.scaled_dot_product_attention, (*QKV, KEEP)),
    "float mask": (ax.scaled_dot_product_attention, (*QKV, np.where(KEEP, 0.5, -np.inf))),
    "dropout on weights": (lambda q, k, v: ax.flash_attention(q, k, v, None, 0.5, rng=3), QKV),
    "every option": (every_option, (*QKV, KEEP, normal(4, 5, 7), normal(4), np.asarray([3, 5]))),
    "self_attention": (lambda x: ax.self_attention(x, 8), (X,)),
    "cross_attention": (lambda x, context: ax.cross_attention(x, context, 8), (X, normal(2, 7, 8))),
    "multi_head_attention": (lambda x, y: ax.multi_head_attention(x, y, y, 2, 8), (X, normal(2, 7, 8))),
    "multi-head params": (with_params, (X, *(normal(8, 8, seed=i) for i in range(4)), normal(8))),
    "softmax": (ax.softmax, (X,)),
    "layer_normalization": (ax.layer_normalization, (X, normal(8), normal(8, seed=1))),
    "dropout": (lambda x: ax.dropout(x, 0.5, rng=3), (X,)),
    "rotary_embedding": (lambda x: ax.rotary_embedding(x, interleaved=True, rotary_dim=6), (X,)),
    "rotary positions": (every_rotary_option, (normal(2, 3, 5, 8), POSITIONS)),
    "rotary scaling": (rotary_scaling, (X, POSITIONS[0])),
    "rotary cache": (rotary_rows, (normal(2, 3, 5, 8), POSITIONS, normal(60, 4))),
    "axial_rotary_embedding": (lambda x: ax.axial_rotary_embedding(x, 1, 5), (X,)),
    "permute_rotary_weights": (lambda w: ax.permute_rotary_weights(w, 2, to="half"), (X,)),
    "create_padding_mask": (lambda t: ax.create_padding_mask(t, dtype="float32"), (np.asarray([[1, 0], [2, 3]]),)),
}
