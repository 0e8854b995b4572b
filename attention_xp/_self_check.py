"""The jobs of ``python -m attention_xp``: each through the package and by the usual formula.

The usual formula is also the reference: the same lines on NumPy arrays in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import attention_xp as ax
from attention_xp._typing import Array, Namespace

__all__ = ["JOBS", "Job"]

B, H, S, CONTEXT, D_MODEL = 4, 8, 512, 768, 512
D_HEAD = D_MODEL // H


@dataclass(frozen=True)
class Job:
    """One kind of attention: its inputs in float64, the call, and the same by hand."""

    name: str
    inputs: tuple[Any, ...]
    ours: Callable[..., Any]
    usual: Callable[..., Any]


def _attend(xp: Namespace, query: Array, key: Array, value: Array, mask: Array | None = None) -> tuple[Array, Array]:
    scores = xp.matmul(query, xp.matrix_transpose(key)) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    return xp.matmul(weights, value), weights


def _multi_head(xp: Namespace, x: Array, *projections: Array) -> tuple[Array, Array]:
    w_q, w_k, w_v, w_o = projections
    heads = (
        xp.permute_dims(xp.reshape(xp.matmul(x, w), (B, S, H, D_HEAD)), (0, 2, 1, 3))  # (B, H, S, dh)
        for w in (w_q, w_k, w_v)
    )
    output, weights = _attend(xp, *heads)
    joined = xp.reshape(xp.permute_dims(output, (0, 2, 1, 3)), (B, S, D_MODEL))
    return xp.matmul(joined, w_o), weights


def _jobs() -> Iterator[Job]:
    draw = np.random.default_rng(0).standard_normal
    heads = tuple(draw((B, H, S, D_HEAD)) for _ in range(3))
    sequence, context = draw((B, S, D_MODEL)), draw((B, CONTEXT, D_MODEL))
    projections = tuple(draw((D_MODEL, D_MODEL)) / D_MODEL**0.5 for _ in range(4))
    causal = ax.create_causal_mask(S, dtype="float64")
    lengths = np.linspace(S // 4, S, B, dtype=int)
    padding = ax.create_padding_mask((np.arange(S) < lengths[:, None]).astype(int), dtype="float64")

    yield Job("scaled dot-product", heads, lambda xp, *a: ax.scaled_dot_product_attention(*a), _attend)
    yield Job(
        "multi-head",
        (sequence, *projections),
        lambda xp, x, *p: ax.multi_head_self_attention(x, H, D_MODEL, params=ax.MultiHeadParams(*p)),
        _multi_head,
    )
    yield Job(
        "self",
        (sequence,),
        lambda xp, x: ax.self_attention(x, D_MODEL),
        lambda xp, x: _attend(xp, x, x, x),
    )
    yield Job(
        "cross",
        (sequence, context),
        lambda xp, x, c: ax.cross_attention(x, c, D_MODEL),
        lambda xp, x, c: _attend(xp, x, c, c),
    )
    yield Job(
        "causal",
        (*heads, causal),
        lambda xp, q, k, v, mask: ax.scaled_dot_product_attention(q, k, v, is_causal=True),
        _attend,
    )
    yield Job("padded", (*heads, padding), lambda xp, *a: ax.scaled_dot_product_attention(*a), _attend)


JOBS = tuple(_jobs())
