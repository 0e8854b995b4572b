"""Layer normalisation."""

from attention_xp._backend.dtypes import as_dtype, computation_dtype
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._checks.numbers import check_number
from attention_xp._public_types import ArrayT

__all__ = ["layer_normalization"]


def layer_normalization(
    x: ArrayT, gamma: ArrayT | None = None, beta: ArrayT | None = None, epsilon: float = 1e-5
) -> ArrayT:
    r"""Normalise each row of the last axis to mean 0 and variance 1, then scale and shift it.

    .. math:: y = \gamma \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} + \beta

    Parameters
    ----------
    x : array
        ``(..., D)``, floating; 16-bit input is computed in float32.
    gamma : array, optional
        ``(D,)``, floating. Default: ones, which are not computed with.
    beta : array, optional
        ``(D,)``, floating. Default: zeros, likewise.
    epsilon : float, default: 1e-5
        Added to the variance; not negative.

    Returns
    -------
    array
        Shape, dtype, library and device of `x`.

    Raises
    ------
    TypeError
        If an argument is no floating array.
    ValueError
        If a shape does not fit, or `epsilon` is negative.

    References
    ----------
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import layer_normalization
    >>> layer_normalization(np.asarray([[1.0, 2.0, 3.0]]), np.ones(3), np.zeros(3)).round(3)
    array([[-1.225,  0.   ,  1.225]])
    >>> layer_normalization(np.asarray([[1.0, 2.0, 3.0]])).round(3)
    array([[-1.225,  0.   ,  1.225]])
    """
    given = {name: a for name, a in (("gamma", gamma), ("beta", beta)) if a is not None}
    xp = common_namespace(x=x, **given)
    check_floating(xp, x=x, **given)
    check_placement(xp, x=x, **given)
    if x.ndim < 1:
        raise ValueError(f"x needs at least 1 axis: expected x (..., D), {shapes(x=x)}")
    for name, a in given.items():
        if tuple(a.shape) != (x.shape[-1],):
            raise ValueError(
                f"{name} must have the width of x: expected {name} (D,) = ({x.shape[-1]},), {shapes(x=x, **{name: a})}"
            )
    epsilon = check_number("epsilon", epsilon)
    if epsilon < 0.0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    if x.shape[-1] == 0:
        return xp.astype(x, x.dtype, copy=True)
    dtype = computation_dtype(xp, x.dtype)
    wide = as_dtype(xp, x, dtype)
    centred = wide - xp.mean(wide, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    y = centred / xp.sqrt(variance + epsilon)
    if gamma is not None:
        y = filled_up(xp, as_dtype(xp, gamma, dtype), x.ndim) * y
    if beta is not None:
        y = y + filled_up(xp, as_dtype(xp, beta, dtype), x.ndim)
    return as_dtype(xp, y, x.dtype)
