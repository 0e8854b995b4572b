"""Gradients by the library's own automatic differentiation."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tests._backends import Backend, to_numpy

WITH_GRADIENTS = ("torch", "jax")


def gradients(library: Backend, function: Callable[..., Any]) -> Callable[..., list[np.ndarray]]:
    """Return a function that gives the gradients of the sum of a function's result in all its arguments."""
    if library.like("jax"):
        jax = importlib.import_module("jax")
        grad = jax.jit(lambda *xs: jax.grad(lambda xs: function(*xs).sum())(xs))
    else:
        autograd = importlib.import_module("torch").autograd

        def grad(*xs: Any) -> Any:
            xs = [x.requires_grad_() for x in xs]
            return autograd.grad(function(*xs).sum(), xs, materialize_grads=True)

    return lambda *arrays: [
        to_numpy(x) for x in grad(*(library.array(x) if isinstance(x, np.ndarray) else x for x in arrays))
    ]


def check(library: Backend, function: Callable[..., Any], *arrays: np.ndarray) -> None:
    """Compare first and second derivatives, forward and reverse, with differences, in the widest dtype."""
    made = [library.array(x, library.dtypes()[-1]) for x in arrays]
    if library.like("jax"):
        _check_jax(function, made)
    else:
        autograd = importlib.import_module("torch").autograd
        made = [x.requires_grad_() for x in made]
        assert autograd.gradcheck(function, made, check_forward_ad=True, fast_mode=True)
        assert autograd.gradgradcheck(function, made, fast_mode=True)


def _check_jax(function: Callable[..., Any], made: list[Any]) -> None:
    """Differentiate along one direction; `jax.test_util.check_grads` compiles many times as much."""
    jax = importlib.import_module("jax")
    jnp = jax.numpy
    step, rtol = (1e-5, 1e-7) if made[0].dtype == jnp.float64 else (1e-2, 2e-3)
    direction = [jnp.cos(1.0 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in made]

    def loss(*xs: Any) -> Any:
        outputs = jax.tree.leaves(function(*xs))
        return sum((jnp.sin(1.0 + jnp.arange(y.size, dtype=y.dtype)) * y.ravel()).sum() for y in outputs)

    def reverse(*xs: Any) -> Any:
        slopes = jax.grad(loss, argnums=tuple(range(len(xs))))(*xs)
        return sum((slope * d).sum() for slope, d in zip(slopes, direction, strict=True))

    def derivatives(*xs: Any) -> Any:
        slope, curvature = jax.jvp(reverse, xs, tuple(direction))[:2]
        return jax.jvp(loss, xs, tuple(direction))[1], slope, curvature

    values = jax.jit(lambda *xs: (loss(*xs), reverse(*xs)))
    above, below = (
        np.asarray(values(*(x + sign * step * d for x, d in zip(made, direction, strict=True)))) for sign in (1.0, -1.0)
    )
    slope, curvature = (above - below) / (2.0 * step)
    expected = np.asarray([slope, slope, curvature])
    actual = np.asarray(jax.jit(derivatives)(*made))
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=10.0 * rtol)
