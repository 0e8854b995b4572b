"""Attention together with its gradients, on every library."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._engine.kernels.choose import attend, choose
from attention_xp._engine.kernels.gradients import backward, derivative_refusal
from attention_xp._engine.problem.known_end import with_zeros
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.tile.arithmetic import summed_to
from attention_xp._engine.tile.backward_step import Gradients
from attention_xp._public_types import Array, ArrayT, Generic, HeldT
from attention_xp._typing import Namespace
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = ["AttentionGradients", "attention_vjp"]


class AttentionGradients(NamedTuple, Generic[HeldT]):
    """Gradients of the arguments of attention, each with the shape and dtype of its argument.

    ``None`` for what was not given, or is no floating array; for a `Bias`, a tuple, one for each of its `arrays`. Being a named tuple, it is a pytree to JAX.
    """

    query: HeldT
    key: HeldT
    value: HeldT
    mask: HeldT | None = None
    bias: HeldT | tuple[HeldT, ...] | None = None
    sinks: HeldT | None = None


@with_options
def attention_vjp(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    *,
    dropout_rate: float = 0.0,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, Callable[[ArrayT], AttentionGradients[ArrayT]]]:
    r"""Attend, and return the function that takes the gradient of the output to those of the arguments.

    .. math::

        P = e^{S - \mathrm{lse}}, \quad
        dV = P^T dO, \quad
        dS = P \circ (dO V^T - \mathrm{rowsum}(O \circ dO)), \quad
        dQ = \mathrm{scale} \, dS \, K, \quad
        dK = \mathrm{scale} \, dS^T Q

    The weights :math:`P` are computed anew, tile by tile, so that memory is linear in the lengths, and tiles
    that the masks exclude are skipped. Analytic: it needs no automatic differentiation of the library and works
    inside its transformations.

    Parameters
    ----------
    query, key, value, mask
        As in `scaled_dot_product_attention`.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``. The gradients see the same draw.
    {options}

    Returns
    -------
    output : array
        ``(..., H, Sq, Dv)``, with dtype, library and device of `query`.
    vjp : callable
        ``vjp(grad_output) -> AttentionGradients(query, key, value, mask, bias, sinks)``. `grad_output` has the
        shape of `output`. A row that may attend nothing has zero gradients. That of a `scale` that is an array
        follows from that of the query: it is ``sum(query * grad_query) / scale``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no array, another library, another dtype.
    ValueError
        If a shape or a value does not fit, `impl` cannot compute the call, or `score_mod` comes without its
        derivative where the library has no derivatives of its own.

    References
    ----------
    Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import attention_vjp
    >>> x = np.eye(3)
    >>> output, vjp = attention_vjp(x, x, x, is_causal=True)
    >>> vjp(np.ones((3, 3))).value.round(2)
    array([[1.62, 1.62, 1.62],
           [0.9 , 0.9 , 0.9 ],
           [0.47, 0.47, 0.47]])
    """
    if options:
        check_options(attention_vjp, options)
    problem = Problem.of(query, key, value, mask, dropout_rate, options)
    reason = derivative_refusal(problem)
    if reason is not None:
        raise ValueError(reason)
    xp, scaled = problem.xp, problem.with_scaled_query()
    wide = dataclasses.replace(scaled, query=_cast(xp, scaled.query, problem.dtype))
    kernel = choose(wide, Wanted(lse=True))
    result = attend(wide, Wanted(lse=True), kernel)
    given = _Given(query, key, value, mask, options.get("bias"), options.get("sinks"))
    factor = problem.scale if wide.scale is not problem.scale else None

    def vjp(grad_output: ArrayT) -> AttentionGradients[ArrayT]:
        _check_gradient(xp, query, result.output, grad_output)
        gradients = backward(wide, result.output, result.lse, grad_output, whole=kernel == "dense")
        if factor is not None:
            gradients = gradients._replace(query=gradients.query * factor)
        return given.like(xp, gradients)

    return _cast(xp, result.output, query.dtype), vjp


def _check_gradient(xp: Namespace, query: Array, output: Array, gradient: Array) -> None:
    common_namespace(query=query, grad_output=gradient)
    check_floating(xp, grad_output=gradient)
    check_placement(xp, query=query, grad_output=gradient)
    if tuple(gradient.shape) != tuple(output.shape):
        raise ValueError(
            "grad_output must have the shape of the output: expected grad_output (..., H, Sq, Dv) = "
            f"{tuple(output.shape)}, {shapes(grad_output=gradient)}"
        )


def _cast(xp: Namespace, array: Array, dtype: Any) -> Any:
    return xp.astype(array, dtype, copy=False)


class _Given(NamedTuple):
    """The arguments of a call as they came."""

    query: Array
    key: Array
    value: Array
    mask: Any
    bias: Any
    sinks: Any

    def like(self, xp: Namespace, gradients: Gradients) -> AttentionGradients:
        """Give each gradient the shape and dtype of its argument."""
        addends = list(gradients.addends)  # the bias, then the floating mask
        bias = None if self.bias is None else addends.pop(0)
        mask = addends.pop(0) if addends else None
        query = summed_to(xp, gradients.query, tuple(self.query.shape))
        key, value = (with_zeros(xp, a, self.key.shape[-2], axis=-2) for a in (gradients.key, gradients.value))
        mask, bias = (_of_all_keys(xp, *pair) for pair in ((self.mask, mask), (self.bias, bias)))
        parts = (query, key, value, mask, bias, gradients.sinks)
        return AttentionGradients(*(_like(xp, given, part) for given, part in zip(self, parts, strict=True)))


def _of_all_keys(xp: Namespace, given: Any, gradient: Any) -> Any:
    """Return the gradient of what is added to the scores, with zeros where no key can be attended."""
    if gradient is None or isinstance(given, Bias) or given.ndim == 0:
        return gradient
    return with_zeros(xp, gradient, given.shape[-1])


def _like(xp: Namespace, given: Any, gradient: Any) -> Any:
    if isinstance(given, Bias):
        # Behind its own arrays there may be those that it has captured from a trace, which are nobody's argument.
        return tuple(_like(xp, *pair) for pair in zip(given.arrays, gradient, strict=False))
    return None if gradient is None else _cast(xp, xp.reshape(gradient, tuple(given.shape)), given.dtype)
