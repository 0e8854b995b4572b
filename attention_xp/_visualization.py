"""Attention weights, reduced to what a plot needs."""

from typing import Any

from attention_xp._backend.derivatives import constant
from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, shapes
from attention_xp._public_types import Array

__all__ = ["attention_score_visualization"]


def attention_score_visualization(attention_weights: Array, tokens: Any = None) -> dict[str, Any]:
    r"""Reduce attention weights to one matrix and its range.

    .. math:: \mathrm{view}_{ij} = \frac{1}{H} \sum_h \mathrm{weights}_{0 h i j}

    the weights of the first batch item, averaged over the heads.

    Parameters
    ----------
    attention_weights : array
        ``(B, H, Sq, Sk)``, ``(B, Sq, Sk)`` or ``(Sq, Sk)``, floating, as `scaled_dot_product_attention` returns them.
    tokens : sequence of str, optional
        Labels of rows and columns; handed through as they are, however many.

    Returns
    -------
    dict
        ``weights``: ``(Sq, Sk)`` of the first batch item, heads averaged; ``tokens``; ``shape`` of these
        weights; ``max_attention`` and ``min_attention`` as Python floats.

    Raises
    ------
    TypeError
        If `attention_weights` is no floating array.
    ValueError
        If it has fewer than 2 or more than 4 axes, or is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import attention_score_visualization
    >>> view = attention_score_visualization(np.full((1, 8, 2, 2), 0.5), ["the", "cat"])
    >>> view["shape"], view["tokens"], view["max_attention"]
    ((2, 2), ['the', 'cat'], 0.5)
    """
    xp = common_namespace(attention_weights=attention_weights)
    check_floating(xp, attention_weights=attention_weights)
    if not 2 <= attention_weights.ndim <= 4 or 0 in attention_weights.shape:
        raise ValueError(
            "attention_weights must have 2 to 4 axes, none of length 0: expected attention_weights (B, H, Sq, Sk), (B, Sq, Sk) or (Sq, Sk), "
            f"{shapes(attention_weights=attention_weights)}"
        )
    weights = attention_weights
    if weights.ndim > 2:
        weights = weights[0, ...]
    if weights.ndim > 2:
        weights = xp.mean(weights, axis=0)
    plain = constant(xp, weights)
    return {
        "weights": weights,
        "tokens": tokens,
        "shape": tuple(weights.shape),
        "max_attention": float(xp.max(plain)),
        "min_attention": float(xp.min(plain)),
    }
