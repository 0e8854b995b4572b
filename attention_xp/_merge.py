"""Join attention over parts of the keys."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add

from attention_xp._backend.dtypes import as_dtype, computation_dtype
from attention_xp._backend.libraries import array_namespace, common_namespace
from attention_xp._backend.values import by_value
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._public_types import ArrayT
from attention_xp._softmax import exponentials, log_sum, nonzero
from attention_xp._typing import Array

__all__ = ["merge_attention", "shares_of", "weighted"]


def merge_attention(outputs: Sequence[ArrayT], lses: Sequence[ArrayT]) -> tuple[ArrayT, ArrayT]:
    r"""Return the attention over the union of key sets from the attention over each.

    .. math::

        \mathrm{lse} = \log \sum_p e^{\mathrm{lse}_p}, \qquad
        \mathrm{output} = \sum_p e^{\mathrm{lse}_p - \mathrm{lse}} \, \mathrm{output}_p

    Exact, associative and differentiable. Sinks belong to one part only. A part whose log-sum-exp is ``-inf`` counts for
    nothing, whatever its output is.

    Parameters
    ----------
    outputs : sequence of arrays
        ``(..., H, Sq, Dv)`` each, as `flash_attention` returns them.
    lses : sequence of arrays
        ``(..., H, Sq)`` each, from ``return_lse=True``.

    Returns
    -------
    output : array
        ``(..., H, Sq, Dv)``, in the dtype of the first output.
    lse : array
        ``(..., H, Sq)``, at least float32.

    Raises
    ------
    TypeError
        If `outputs` or `lses` is no sequence, an entry is no floating array, or libraries are mixed.
    ValueError
        If there is nothing to merge, or numbers or shapes do not fit.

    References
    ----------
    Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import flash_attention, merge_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((10, 8)) for _ in range(3))
    >>> parts = [flash_attention(q, k[s], v[s], return_lse=True) for s in (slice(0, 4), slice(4, 10))]
    >>> output, lse = merge_attention(*zip(*parts))
    >>> bool(np.allclose(output, flash_attention(q, k, v)))
    True
    """
    for name, given in (("outputs", outputs), ("lses", lses)):
        if hasattr(given, "dtype") or not isinstance(given, Iterable):
            kind = "a single array" if hasattr(given, "dtype") else type(given).__name__
            raise TypeError(f"{name} must be a sequence of arrays, one for each part of the keys, got {kind}")
    outputs, lses = list(outputs), list(lses)
    if len(outputs) == 0 or len(outputs) != len(lses):
        raise ValueError(
            f"expected one lse for each of at least one output, got {len(outputs)} outputs, {len(lses)} lses"
        )
    named = {f"outputs[{i}]": a for i, a in enumerate(outputs)} | {f"lses[{i}]": a for i, a in enumerate(lses)}
    xp = common_namespace(**named)
    check_floating(xp, **named)
    check_placement(xp, **named)
    _check_shapes(outputs, lses)
    dtype = computation_dtype(xp, outputs[0].dtype)
    logs = xp.stack([as_dtype(xp, a, dtype) for a in lses], axis=0)  # (parts, ..., H, Sq)
    shares, lse = shares_of(logs)
    output = weighted(shares, logs, [as_dtype(xp, a, dtype) for a in outputs])
    return as_dtype(xp, output, outputs[0].dtype), lse


def shares_of(logs: Array) -> tuple[Array, Array]:
    """Return the shares of parts, along the first axis, in the sum of their exponentials, and its logarithm."""
    xp = array_namespace(logs)
    shares, total, shift = exponentials(logs, axis=0, xp=xp)
    return shares / nonzero(total, xp=xp), xp.squeeze(log_sum(total, shift, xp=xp), axis=0)


def weighted(shares: Array, logs: Array, outputs: Sequence[Array]) -> Array:
    """Return the sum of outputs (..., Sq, Dv), each times its share of (parts, ..., Sq).

    A part whose log-sum-exp is ``-inf`` is silent, whatever its output is.
    """
    xp = array_namespace(logs)
    shares, is_silent = (xp.expand_dims(x, axis=-1) for x in (shares, logs == -math.inf))
    return by_value(xp, lambda: ~xp.any(is_silent), _weighted, _weighted_unless_silent, shares, is_silent, *outputs)


def _weighted(shares: Array, _: Array, *outputs: Array) -> Array:
    """Return the weighted sum of outputs, which are large: added one after the other, and not stacked in memory."""
    return reduce(add, (shares[i, ...] * output for i, output in enumerate(outputs)))


def _weighted_unless_silent(shares: Array, is_silent: Array, *outputs: Array) -> Array:
    """Return the same, where a part that attended nothing may say NaN, and 0 times NaN would be NaN."""
    xp = array_namespace(is_silent)
    heard = (xp.where(is_silent[i, ...], 0.0, output) for i, output in enumerate(outputs))
    return _weighted(shares, is_silent, *heard)


def _check_shapes(outputs: list[Array], lses: list[Array]) -> None:
    first = tuple(outputs[0].shape)
    for i, (output, lse) in enumerate(zip(outputs, lses, strict=True)):
        if tuple(output.shape) != first or tuple(lse.shape) != first[:-1]:
            raise ValueError(
                f"outputs[{i}] and lses[{i}] do not fit the first output: expected output (..., H, Sq, Dv) = {first} and "
                f"lse (..., H, Sq) = {first[:-1]}, {shapes(output=output, lse=lse)}"
            )
