"""Attention together with its gradients, on every library."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

from attention_xp._backend.dtypes import as_dtype, dtype_name
from attention_xp._backend.libraries import common_namespace, is_numpy, is_numpy_namespace
from attention_xp._backend.modes import refuse_shards
from attention_xp._backend.shapes import summed_to
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._engine.kernels.choose import attend, choose
from attention_xp._engine.kernels.gradients import backward, derivative_refusal
from attention_xp._engine.problem.known_end import filled_to
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.tile.gradients import Gradients
from attention_xp._public_types import Array, ArrayT, Generic, HeldT
from attention_xp._typing import Namespace
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = ["AttentionGradients", "WayBack", "attention_vjp", "check_like_rows"]


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
        shape of `output`. A row that may attend nothing has zero gradients. The gradient of `scale` follows from that
        of the query: it is ``sum(query * grad_query) / scale``, with ``nansum`` where rows that attend nothing hold NaN.

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
    way = WayBack.of(query, key, value, mask, dropout_rate, options)
    problem, xp = way.problem, way.problem.xp
    result = attend(problem, Wanted(lse=True), way.kernel)
    lse: Any = result.lse

    def vjp(grad_output: ArrayT) -> AttentionGradients[ArrayT]:
        check_like_rows(problem, "grad_output", grad_output, value.shape[-1])
        return way.gradients(result.output, lse, grad_output, None)

    return _cast(xp, result.output, query.dtype), vjp


def check_like_rows(problem: Problem, name: str, array: Array, *width: int) -> None:
    """Refuse what is no floating array with one line, or one number, for each row of the query."""
    xp, query = problem.xp, problem.query
    common_namespace(**{"query": query, name: array})
    check_floating(xp, **{name: array})
    check_placement(xp, query=query, **{name: array})
    expected = (*problem.lead, query.shape[-2], *width)
    if tuple(array.shape) != expected:
        letters = "(..., H, Sq, Dv)" if width else "(..., H, Sq)"
        kind = "output" if width else "log-sum-exp"
        raise ValueError(
            f"{name} must have the shape of the {kind}: expected {name} {letters} = {expected}, {shapes(**{name: array})}"
        )


def _cast(xp: Namespace, array: Array, dtype: Any) -> Any:
    return as_dtype(xp, array, dtype)


class WayBack(NamedTuple):
    """What leads from the gradient of an output to those of the arguments of a call."""

    problem: Problem  # with the query in the dtype of the computation
    kernel: str
    factor: float | Array | None  # of the gradient of the query, where a scale that is an array has become a part of it
    given: "_Given"

    @classmethod
    def of(
        cls,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | Mask | None,
        dropout_rate: float,
        options: AttentionOptions,
    ) -> "WayBack":
        """Check a call, and choose who computes it."""
        problem = Problem.of(query, key, value, mask, dropout_rate, options)
        reason = derivative_refusal(problem)
        if reason is not None:
            raise ValueError(reason)
        scaled = problem.with_scaled_query()
        factor = problem.scale if scaled is not problem else None
        wide = dataclasses.replace(scaled, query=_cast(problem.xp, scaled.query, problem.dtype))
        kernel = choose(wide, Wanted(lse=True))
        refuse_shards(problem.xp)
        given = _Given(query, key, value, mask, options.get("bias"), options.get("sinks"))
        return cls(wide, kernel, factor, given)

    def gradients(self, output: Array, lse: Array, grad_output: Array, grad_lse: Array | None) -> AttentionGradients:
        """Return the gradients of all arguments."""
        found = backward(self.problem, output, lse, grad_output, grad_lse, whole=self.kernel == "dense")
        if self.factor is not None:
            found = found._replace(query=found.query * self.factor)
        return self.given.like(self.problem.xp, found)


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
        key, value = (filled_to(xp, a, self.key.shape[-2], axis=-2) for a in (gradients.key, gradients.value))
        mask, bias = (_of_all_keys(xp, *pair) for pair in ((self.mask, mask), (self.bias, bias)))
        parts = (query, key, value, mask, bias, gradients.sinks)
        return AttentionGradients(*(_like(xp, given, part) for given, part in zip(self, parts, strict=True)))


def _of_all_keys(xp: Namespace, given: Any, gradient: Any) -> Any:
    """Return the gradient of what is added to the scores, with zeros where no key can be attended."""
    if gradient is None or isinstance(given, Bias) or given.ndim == 0:
        return gradient
    return filled_to(xp, gradient, given.shape[-1])


def _like(xp: Namespace, given: Any, gradient: Any) -> Any:
    if isinstance(given, Bias):
        # Behind its own arrays there may be those that it has captured from a trace, which are nobody's argument.
        return tuple(_like(xp, *pair) for pair in zip(given.arrays, gradient, strict=False))
    if gradient is None:
        return None
    is_of_numpy = is_numpy(given) and not is_numpy_namespace(xp)  # as the arrays of a rule may be
    dtype = getattr(xp, dtype_name(given.dtype)) if is_of_numpy else given.dtype
    return _cast(xp, xp.reshape(gradient, tuple(given.shape)), dtype)
