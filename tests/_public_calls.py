"""One call, or several, of every numerical function, on every kernel: what transformations are tried on."""

from functools import partial

import numpy as np

import attention_xp as ax
from attention_xp import biases, linear, masks
from attention_xp._backend.libraries import array_namespace
from tests._inputs import inputs, normal

__all__ = ["CALLS", "FUSED", "QKV", "is_rare"]

QKV = inputs((2, 4, 5, 8), (2, 2, 7, 8))
X = normal(2, 5, 8)
LINEAR = inputs((2, 4, 9, 8), (2, 2, 9, 8))
KEEP = normal(2, 1, 5, 7) > -0.5
POSITIONS = np.random.default_rng(0).integers(0, 60, (2, 2, 5))


def every_option(q, k, v, mask, bias, sinks, lengths, factor, **how):
    """Attention with all options that are arrays, and all that are not."""
    return ax.flash_attention(
        q, k, v, mask, 0.5, rng=1, bias=bias, sinks=sinks, is_causal=True, window=(4, 1), query_offset=lengths,
        query_lengths=lengths, key_lengths=lengths, scale=0.5, softcap=2.0,
        score_mod=lambda score, b, h, q_idx, kv_idx: factor[h] * score, **how,
    )  # fmt: skip


def every_mask(q, k, v, which, bounds, **how):
    """Attention under rules of every kind."""
    mask = (
        (masks.CausalMask() & masks.WindowMask(4, 1) & masks.SegmentMask(which, which))
        | masks.PrefixMask(bounds) & masks.StridedMask(2)
        | masks.GlobalMask(which == 2)
        | masks.FunctionMask(lambda b, h, q_idx, kv_idx: kv_idx == q_idx + bounds[0])
    ) & masks.BlockMask(which[:6].reshape(2, 3) < 2, (4, 3))
    return ax.flash_attention(q, k, v, mask & masks.LengthMask(bounds), query_offset=0, **how)


def slopes(q, k, v, bias, sinks, **how):
    """The gradients of attention."""
    output, vjp = ax.attention_vjp(q, k, v, bias=bias, sinks=sinks, softcap=2.0, **how)
    gradients = vjp(output)
    return output, *gradients[:3], gradients.bias, gradients.sinks


def piece(q, k, v, positions, **how):
    """Gradients of a piece of the keys, given the output and the log-sum-exp of the whole."""
    how |= {"query_offset": 2, "is_causal": True}
    output, lse = ax.flash_attention(q, k, v, key_positions=positions, return_lse=True, **how)
    some = k[..., :4, :], v[..., :4, :]
    return output, *ax.attention_gradients(q, *some, output, lse, output, key_positions=positions[:4], **how)[:3]


def every_bias(q, k, v, slopes, table, **how):
    """Attention under biases that are rules."""
    return tuple(
        ax.flash_attention(q, k, v, bias=bias, query_offset=2, **how)
        for bias in (biases.AlibiBias(slopes), biases.RelativePositionBias(table, max_distance=9))
    )


def relative_scores(q, k, v, embeddings, **how):
    """Attention with scores of distances, and the same the older way."""
    scores = biases.relative_position_scores(q, embeddings, 7, query_offset=2)
    return ax.flash_attention(q, k, v, bias=scores, **how), biases.relative_shift(scores)


def parts(q, k, v, **how):
    """Attention to two parts of the keys."""
    bounds = (slice(3), slice(3, 7))
    pieces = [ax.flash_attention(q, k[..., i, :], v[..., i, :], return_lse=True, **how) for i in bounds]
    return ax.merge_attention(*zip(*pieces, strict=True))


def with_lengths(q, k, v, rows, columns, **how):
    """Attention to as many keys as a batch item has."""
    return ax.flash_attention(q, k, v, query_lengths=rows, key_lengths=columns, **how)


def packed(q, k, v, bounds, **how):
    """Attention within packed sequences."""
    return ax.varlen_attention(q, k, v, bounds, is_causal=True, **how)


def gated_delta(q, k, v, decay, beta, **how):
    """Linear attention with everything that a rule may have."""
    options = {"update_rule": "gated_delta", "decay": decay, "beta": beta, "feature_map": None} | how
    output, state = linear.linear_attention(q, k, v, return_state=True, **options)
    return output, state.memory


def linear_slopes(q, k, v):
    """The gradients of linear attention, by the rule whose derivatives compile the fastest."""
    output, vjp = linear.linear_attention_vjp(q, k, v, is_causal=True, chunk_size=4)
    return output, *vjp(output)[:3]


def performer(q, k, v):
    """Linear attention with random features."""
    where = {"xp": array_namespace(q), "dtype": "float32"}
    return linear.linear_attention(q, k, v, feature_map=linear.performer_features(8, 12, rng=0, **where))


def with_params(x, *params, **how):
    """Multi-head attention with projections and biases."""
    return ax.multi_head_self_attention(x, 2, 8, params=ax.MultiHeadParams(*params), **how)


def every_rotary_option(x, positions):
    """Rotary positions of two axes, scaled."""
    return ax.rotary_embedding(x, positions, base=100.0, sections=(2, 2), axial=True, scaling=ax.YarnScaling(4.0, 16))


def rotary_scaling(x, positions):
    """Rotary positions under scalings; the first and the last look at the largest position."""
    dynamic = ax.rotary_embedding(x, positions, scaling=ax.DynamicNTKScaling(2.0, 16))
    fixed = (ax.LinearScaling(2.0), ax.NTKScaling(2.0), ax.Llama3Scaling(8.0, 1.0, 4.0, 16))
    others = [ax.rotary_embedding(x, positions, scaling=scaling) for scaling in fixed]
    return dynamic, *others, ax.rotary_embedding(x, positions, scaling=ax.LongRopeScaling([1.0] * 4, [4.0] * 4, 16))


def rotary_rows(x, positions, table):
    """Rotary positions with cosines and sines from a table."""
    cache = ax.RotaryCache(table, 0.5 * table)
    return ax.rotary_embedding(x, positions, sections=(1, 3), cache=cache), ax.rotary_embedding(x, cache=cache)


LENGTHS = np.asarray([2, 5]), np.asarray([7, 3])  # of rows, and of keys
OPERANDS = (*QKV, KEEP, normal(4, 5, 7), normal(4), np.asarray([3, 5]), normal(4))
SEVEN = inputs((2, 4, 7, 8), (2, 2, 7, 8))
FLASH = {  # what the kernel of a library may know as well; our own meet single options in "every option"
    "flash_attention": (ax.flash_attention, QKV),
    "square causal": (lambda q, k, v, **how: ax.flash_attention(q, k, v, is_causal=True, **how), SEVEN),
    "boolean mask": (ax.flash_attention, (*QKV, KEEP)),
    "float mask": (ax.flash_attention, (*QKV, np.where(KEEP, 0.5, -np.inf))),
    "bias": (lambda q, k, v, bias, **how: ax.flash_attention(q, k, v, bias=bias, **how), (*QKV, normal(4, 5, 7))),
    "lengths": (with_lengths, (*QKV, *LENGTHS)),
}
ATTENTION = {name: FLASH[name] for name in ("flash_attention", "float mask")} | {
    "scaled_dot_product_attention": (ax.scaled_dot_product_attention, QKV),
    "causal": (
        lambda q, k, v, **how: ax.flash_attention(q, k, v, is_causal=True, query_offset=2, return_lse=True, **how),
        QKV,
    ),
    "every option": (every_option, OPERANDS),
    "every mask": (every_mask, (*SEVEN, np.asarray([0, 0, 1, 1, 1, 2, 3]), np.asarray([3, 6]))),
    "every bias": (every_bias, (*QKV, normal(4), normal(8, 4))),
    "relative scores": (relative_scores, (*QKV, normal(5, 8))),
    "attention_vjp": (slopes, (*QKV, normal(4, 5, 7), normal(4))),
    "attention_gradients": (piece, (*QKV, np.asarray([3, 0, 9, -1, 2, 4, 1]))),
    "attention_statistics": (
        lambda q, k, **how: ax.attention_statistics(q, k, is_causal=True, query_offset=2, **how),
        QKV[:2],
    ),
    "merge_attention": (parts, QKV),
    "varlen_attention": (
        packed,
        (normal(12, 4, 8), *(normal(12, 2, 8, seed=i) for i in (1, 2)), np.asarray([0, 3, 3, 10])),
    ),
    "self_attention": (lambda x, **how: ax.self_attention(x, 8, **how), (X,)),
    "cross_attention": (lambda x, context, **how: ax.cross_attention(x, context, 8, **how), (X, normal(2, 7, 8))),
    "multi_head_attention": (lambda x, y, **how: ax.multi_head_attention(x, y, y, 2, 8, **how), (X, normal(2, 7, 8))),
    "multi-head params": (with_params, (X, *(normal(8, 8, seed=i) / 3.0 for i in range(4)), normal(8))),
}
# Two by two tiles that do not divide the lengths: torch unrolls them.
HOW = {"dense": {"impl": "dense"}, "tiled": {"impl": "tiled", "tile": (3, 4)}}
GATED = gated_delta, (*LINEAR, -np.abs(normal(2, 2, 9, 8)), normal(2, 2, 9, 1) ** 2 / 9.0)
OTHERS = {
    "linear_attention, chunked": (partial(GATED[0], impl="chunked", chunk_size=4), GATED[1]),
    "linear_attention, recurrent": (partial(GATED[0], impl="recurrent"), GATED[1]),
    "linear_attention_vjp": (linear_slopes, LINEAR),
    "performer_features": (performer, LINEAR),
    "attention_scores": (
        lambda q, k, b: ax.attention_scores(q, k, is_causal=True, query_offset=2, softcap=2.0, bias=b, stage="biased"),
        (*QKV[:2], normal(4, 5, 7)),
    ),
    "softmax": (ax.softmax, (X,)),
    "layer_normalization": (ax.layer_normalization, (X, normal(8), normal(8, seed=1))),
    "dropout": (lambda x: ax.dropout(x, 0.5, rng=3), (X,)),
    "rotary_embedding": (lambda x: ax.rotary_embedding(x, interleaved=True, rotary_dim=6), (X,)),
    "rotary positions": (every_rotary_option, (normal(2, 4, 5, 8), POSITIONS)),
    "rotary scaling": (rotary_scaling, (X, POSITIONS[0])),
    "rotary cache": (rotary_rows, (normal(2, 4, 5, 8), POSITIONS, normal(60, 4))),
    "axial_rotary_embedding": (lambda x: ax.axial_rotary_embedding(x, 1, 5), (X,)),
    "permute_rotary_weights": (lambda w: ax.permute_rotary_weights(w, 2, to="half"), (X,)),
    "create_padding_mask": (lambda t: ax.create_padding_mask(t, dtype="float32"), (np.asarray([[1, 0], [2, 3]]),)),
}
CALLS = OTHERS | {
    f"{name}, {impl}": (partial(function, **how), arguments)
    for name, (function, arguments) in ATTENTION.items()
    for impl, how in HOW.items()
}
FUSED = {
    f"{name}, {impl}": (partial(function, impl=impl), arguments)
    for name, (function, arguments) in FLASH.items()
    for impl in ("auto", "fused")
}


def is_rare(name):
    """Whether a call compiles to little that others do not, for a quick run: most of the formula, what a library chooses."""
    telling = name.startswith(("every option", "every bias", "attention_vjp", "merge_attention", "flash_attention"))
    return name.endswith((", dense", ", fused")) and not telling
