"""Gradients of linear attention by formula, chunk by chunk: on every backend, in memory linear in the length."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.shapes import summed_to
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._checks.numbers import check_flag
from attention_xp._engine.problem.options import check_options
from attention_xp._typing import Array
from attention_xp.linear._attention import linear_attention
from attention_xp.linear._chunk import Carry
from attention_xp.linear._compute import backward, forward_keeping, run
from attention_xp.linear._feature_maps import FeatureMap, differentiated
from attention_xp.linear._problem import LinearProblem, LinearState

__all__ = ["LinearGradients", "linear_attention_vjp"]


class LinearGradients(NamedTuple):
    """Gradients in the shapes and dtypes of what they belong to; ``None`` for what was not given."""

    query: Array
    key: Array
    value: Array
    decay: Array | None
    beta: Array | None
    state: LinearState | None


def linear_attention_vjp(
    query: Array, key: Array, value: Array, **options: Any
) -> tuple[Any, Callable[..., LinearGradients]]:
    """Return the output of linear attention, and the function from its gradient to those of the inputs.

    The gradients are computed by formula, chunk by chunk from the end; the state before each chunk is kept from the
    forward pass.

    Parameters
    ----------
    query, key, value : array
        As in `linear_attention`.
    **options
        Those of `linear_attention`. A `feature_map` of your own needs a method ``vjp(x)``, which returns
        the features and the function from their gradient to that of x, or to be one that torch or JAX can
        differentiate.

    Returns
    -------
    output : array or tuple
        What `linear_attention` returns.
    vjp : callable
        ``vjp(grad_output) -> LinearGradients``, with the fields ``query``, ``key``, ``value``, ``decay``,
        ``beta`` and ``state``. With ``return_state=True`` it takes the gradient of the state, a
        `LinearState`, as a second argument; left out, it is zero.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit, or `feature_map` has no derivative here.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.linear import linear_attention_vjp
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 2, 4, 100, 8))
    >>> output, vjp = linear_attention_vjp(query, key, value, is_causal=True)
    >>> vjp(np.ones_like(output)).key.shape
    (2, 4, 100, 8)
    """
    check_options(linear_attention_vjp, options, inspect.signature(linear_attention).parameters)
    return_state = check_flag("return_state", options.get("return_state", False))
    pulls: list[Any] = []

    def apply(feature_map: FeatureMap, x: Array) -> Array:
        features, pull = differentiated(feature_map, x)
        pulls.append(pull)
        return features

    given = {name: option for name, option in options.items() if name != "return_state"}
    problem = LinearProblem.of(query, key, value, apply=apply, **given)
    grouped, carry, kept = run(forward_keeping, problem)
    output = problem.grouping.join(grouped)

    def vjp(grad_output: Array, grad_state: Any = None) -> LinearGradients:
        _check_like("output", output, "grad_output", grad_output)
        left = _end(problem, carry, grad_state)
        found, rows = run(backward, problem, kept, problem.grouping.split(grad_output), left)
        pull = pulls or [None, None]
        of_query, of_key = (_unmapped(problem, rows[i], x, pull[i]) for i, x in enumerate((query, key)))
        of_value, of_decay, of_beta = (
            _like(problem, grad, x)
            for grad, x in zip(rows[2:], (value, options.get("decay"), options.get("beta")), strict=True)
        )
        of_state = _of_state(problem, found, options.get("state"))
        return LinearGradients(of_query, of_key, of_value, of_decay, of_beta, of_state)

    return ((output, problem.state(carry)) if return_state else output), vjp


# The options are spelled out once, where they are documented.
linear_attention_vjp.__signature__ = inspect.signature(linear_attention).replace(  # type: ignore[attr-defined]
    return_annotation=tuple[Any, Callable[..., LinearGradients]]
)


def _check_like(name: str, expected: Array, of_gradient: str, grad: Array) -> None:
    """Check that a gradient fits what it is the gradient of."""
    both = {name: expected, of_gradient: grad}
    xp = common_namespace(**both)
    check_floating(xp, **{of_gradient: grad})
    check_placement(xp, **both)
    if tuple(grad.shape) != tuple(expected.shape):
        raise ValueError(f"{of_gradient} must have the shape of the {name}, {shapes(**both)}")


def _end(problem: LinearProblem, carry: Carry, grad: LinearState | None) -> Carry:
    """Return the gradient of the state after the last chunk."""
    xp = problem.xp
    zeros = Carry(*(None if a is None else xp.zeros_like(a) for a in carry))
    if grad is None:
        return zeros
    if not isinstance(grad, LinearState):
        raise TypeError(f"grad_state must be a LinearState, got {type(grad).__name__}")
    _check_state_gradient(problem.state(carry), grad)
    rows = Carry(grad.memory, None if grad.normalizer is None else xp.expand_dims(grad.normalizer, axis=-2))
    return Carry(*(_of_end(problem, zero, row) for zero, row in zip(zeros, rows, strict=True)))


def _check_state_gradient(state: LinearState, grad: LinearState) -> None:
    for name, a in state._asdict().items():
        given = getattr(grad, name)
        if given is not None and a is None:
            raise ValueError(f"grad_state.{name} must be None, as that of the state is")
        if given is not None:
            _check_like("state", a, f"grad_state.{name}", given)


def _of_end(problem: LinearProblem, zero: Array | None, grad: Array | None) -> Array | None:
    if zero is None or grad is None:
        return zero
    grad = as_dtype(problem.xp, problem.grouping.shared(grad), problem.dtype)
    return summed_to(problem.xp, grad, tuple(zero.shape))


def _unmapped(problem: LinearProblem, grad: Array, given: Array, pull: Callable[[Array], Array] | None) -> Array:
    """Return the gradient of queries or keys, back through a feature map of the caller's own."""
    xp = problem.xp
    grad = xp.reshape(grad, (*given.shape[:-1], grad.shape[-1]))
    return as_dtype(xp, grad if pull is None else pull(grad), given.dtype)


def _like(problem: LinearProblem, grad: Array | None, given: Array | None) -> Array | None:
    """Return a gradient in shape and dtype of what was given."""
    if given is None or grad is None:
        return None
    xp = problem.xp
    grad = as_dtype(xp, grad, problem.dtype)
    grad = summed_to(xp, grad, tuple(problem.grouping.shared(given).shape))
    return as_dtype(xp, xp.reshape(grad, tuple(given.shape)), given.dtype)


def _of_state(problem: LinearProblem, found: Carry, state: LinearState | None) -> LinearState | None:
    if state is None:
        return None
    memory: Array = _like(problem, found.memory, state.memory)
    if state.normalizer is None:
        return LinearState(memory, None)
    of_row: Array = _like(problem, found.key_sum, problem.xp.expand_dims(state.normalizer, axis=-2))
    return LinearState(memory, of_row[..., 0, :])
