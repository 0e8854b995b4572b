"""Gradients of the plain formula by differences, to hold analytic ones against."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests import reference

_STEP = 1e-5
FLOATING = ("query", "key", "value", "mask", "bias", "sinks")


def check_gradients(
    gradients: dict[str, np.ndarray | None],
    arrays: dict[str, Any],
    options: dict[str, Any],
    gradient: np.ndarray,
    *,
    rtol: float = 1e-6,
    grad_lse: np.ndarray | None = None,
) -> None:
    """Compare the gradient of each floating argument with a difference of the formula, along one direction."""
    for name in FLOATING:
        array = arrays.get(name)
        if array is None or array.dtype == bool:
            assert gradients[name] is None, f"{name} was not given, or is boolean"
            continue
        actual = gradients[name]
        assert actual.shape == array.shape, name
        assert np.isfinite(actual).all(), name
        direction = np.random.default_rng(7).standard_normal(array.shape)

        def loss(step: float, name: str = name, direction: np.ndarray = direction) -> float:
            moved = arrays | {name: arrays[name] + step * direction}
            result = reference.attention(**moved, **options)
            of_rows = 0.0 if grad_lse is None else np.where(np.isfinite(result.lse), result.lse, 0.0) * grad_lse
            return float((result.output * gradient).sum() + np.sum(of_rows))

        expected = (loss(_STEP) - loss(-_STEP)) / (2.0 * _STEP)
        scale = 1.0 + np.abs(actual * direction).sum()
        np.testing.assert_allclose((actual * direction).sum(), expected, rtol=0.0, atol=rtol * scale, err_msg=name)


def named(gradients: Any, to_numpy: Callable[[Any], np.ndarray]) -> dict[str, np.ndarray | None]:
    """Return gradients by the name of their argument, as float64 NumPy arrays."""
    return {n: None if g is None else to_numpy(g).astype(np.float64) for n, g in gradients._asdict().items()}
