"""The softmax, written once: every attention function and `softmax` itself come here."""

import math

from attention_xp._backend.derivatives import constant
from attention_xp._backend.dtypes import as_dtype, computation_dtype, dtype_name, is_floating
from attention_xp._backend.libraries import common_namespace, device
from attention_xp._checks.numbers import check_int
from attention_xp._public_types import ArrayT
from attention_xp._typing import Array, Namespace

__all__ = ["exponentials", "largest", "log_sum", "nonzero", "relative_to", "softmax"]


def softmax(x: ArrayT, axis: int = -1) -> ArrayT:
    r"""Return the softmax of `x` along an axis.

    .. math:: \mathrm{softmax}(x)_i = \frac{e^{x_i - \max x}}{\sum_j e^{x_j - \max x}}

    Parameters
    ----------
    x : array
        Floating logits ``(..., N)``, or of any other shape with an axis to share along; 16-bit input is computed in
        float32.
    axis : int, default: -1
        The axis whose entries sum to one.

    Returns
    -------
    array
        Shape, dtype, library and device of `x`. Where all logits of a row are ``-inf``, nothing is
        left to share and the row is zero.

    Raises
    ------
    TypeError
        If `x` is no floating array.
    ValueError
        If `x` has no such axis.

    References
    ----------
    Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990. Blanchard, Higham and
    Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J. Numer. Anal. 41, 2021: why the largest
    logit is subtracted.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import softmax
    >>> softmax(np.asarray([0.0, 0.0, -np.inf]))
    array([0.5, 0.5, 0. ])
    """
    xp = common_namespace(x=x)
    if not is_floating(xp, x.dtype):
        raise TypeError(f"x must be a floating array, got {dtype_name(x.dtype)}")
    axis = check_int("axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} does not exist: got x {tuple(x.shape)}")
    wide = as_dtype(xp, x, computation_dtype(xp, x.dtype))
    weights, total, _ = exponentials(wide, axis=axis, xp=xp)
    return as_dtype(xp, weights / nonzero(total, xp=xp), x.dtype)


def exponentials(
    scores: Array, *, axis: int = -1, sink: Array | None = None, xp: Namespace
) -> tuple[Array, Array, Array]:
    """Return ``exp(scores - shift)``, the sum along `axis` (with that of one more logit, the `sink`) and the shift.

    Nothing that is made of the three depends on the shift.
    """
    peak = largest(scores, axis, xp)
    if sink is not None:
        peak = xp.maximum(peak, sink)
    weights, shift = relative_to(peak, scores, xp=xp)
    total = xp.sum(weights, axis=axis, keepdims=True)
    if sink is not None:
        total = total + xp.exp(sink - shift)
    return weights, total, shift


def relative_to(peak: Array, scores: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Return ``exp(scores - shift)`` and the shift: the largest score, `peak`, or 0 where that is not finite.

    So a row that is ``-inf`` throughout becomes zeros instead of ``exp(-inf + inf)``. No derivative passes through the
    shift: compiled, the largest score may differ from all scores by a rounding.
    """
    shift = constant(xp, xp.where(xp.isfinite(peak), peak, 0.0))
    return xp.exp(scores - shift), shift


def largest(scores: Array, axis: int, xp: Namespace) -> Array:
    """Return the largest score along an axis, which is kept with length 1; -inf where the axis is empty."""
    if scores.shape[axis]:
        return xp.max(scores, axis=axis, keepdims=True)
    shape = list(scores.shape)  # the standard has no maximum of nothing
    shape[axis] = 1
    return xp.full(shape, -math.inf, dtype=scores.dtype, device=device(scores))


def nonzero(total: Array, *, xp: Namespace) -> Array:
    """Return `total` with 1 in place of 0, a divisor for rows that may be empty."""
    return xp.where(total == 0.0, 1.0, total)


def log_sum(total: Array, shift: Array | float, *, xp: Namespace) -> Array:
    """Return ``shift + log(total)``; -inf, without a warning or a NaN gradient, where `total` is 0."""
    return xp.where(total == 0.0, -math.inf, shift + xp.log(nonzero(total, xp=xp)))
