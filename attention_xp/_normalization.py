"""Layer normalisation."""

from attention_xp._backend.dtypes import computation_dtype
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.shapes import filled_up
from attention_xp._engine.checks import check_floating, check_placement, shapes
from attention_xp._engine.numbers import check_number
from attention_xp._typing import Array

__all__ = ["layer_normalization"]


def layer_normalization(x: Array, gamma: Array, beta: Array, epsilon: float = 1e-5) -> Array:
    r"""Normalise each row of the last axis to mean 0 and variance 1, then scale and shift it.

    .. math:: y = \gamma \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} + \beta

    Parameters
    ----------
    x : array
        ``(..., D)``, floating; 16-bit input is computed in float32.
    gamma, beta : array
        ``(D,)``, floating.
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
    """
    xp = common_namespace(x=x, gamma=gamma, beta=beta)
    check_floating(xp, x=x, gamma=gamma, beta=beta)
    check_placement(xp, x=x, gamma=gamma, beta=beta)
    if x.ndim < 1:
        raise ValueError(f"x needs at least 1 axis: expected x (..., D), {shapes(x=x)}")
    for name, a in (("gamma", gamma), ("beta", beta)):
        if tuple(a.shape) != (x.shape[-1],):
            raise ValueError(
                f"{name} must have the width of x: expected {name} (D,) = ({x.shape[-1]},), {shapes(x=x, **{name: a})}"
            )
    epsilon = check_number("epsilon", epsilon)
    if epsilon < 0.0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    if x.shape[-1] == 0:
        return xp.asarray(x, copy=True)
    dtype = computation_dtype(xp, x.dtype)
    wide, gamma, beta = (xp.astype(a, dtype, copy=False) for a in (x, gamma, beta))
    gamma, beta = (filled_up(xp, a, x.ndim) for a in (gamma, beta))
    centred = wide - xp.mean(wide, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    return xp.astype(gamma * (centred / xp.sqrt(variance + epsilon)) + beta, x.dtype, copy=False)
