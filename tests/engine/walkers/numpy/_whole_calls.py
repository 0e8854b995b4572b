"""Attention and its gradients by the walks of compiled loops, and by the formula in float64."""

from typing import Any, NamedTuple

import numpy as np

from attention_xp import flash_attention
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Known
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._engine.walkers.numpy.compiled_backward import compiled_backward
from attention_xp._engine.walkers.numpy.compiled_forward import compiled_forward
from tests import reference


class Results(NamedTuple):
    """The output ``(B, H, Sq, Dv)``, the log-sum-exp ``(B, H, Sq)``, and gradients in the shapes of their arrays."""

    output: np.ndarray
    lse: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


class Arrays(NamedTuple):
    """Query, key, value, and gradients of output and log-sum-exp."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    grad_lse: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, int, int, int], kv_shape: tuple[int, int, int], factor: float = 1.0) -> "Arrays":
        """Draw them for a query (B, H, Sq, D) and (Hkv, Sk, Dv); scores grow with the factor. All are numbers of float32."""
        rng, (*rows, D), (Hkv, Sk, Dv) = np.random.default_rng(0), shape, kv_shape
        shapes = shape, (rows[0], Hkv, Sk, D), (rows[0], Hkv, Sk, Dv), (*rows, Dv), tuple(rows)
        query, *others = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        return cls(query * np.float32(factor), *others)

    def astype(self, dtype: Any) -> "Arrays":
        """Return them in another dtype."""
        return Arrays(*(a.astype(dtype) for a in self))


def problem_of(arrays: Arrays, mask: Any = None, dropout_rate: float = 0.0, **options: Any) -> Problem:
    """Return the problem of a call in tiles."""
    return Problem.of(*arrays[:3], mask, dropout_rate, {**options, "impl": "tiled"})


def by_loops(arrays: Arrays, mask: Any = None, *, threads: int = 2, **options: Any) -> Results:
    """Compute all results by compiled loops, which must not give up."""
    problem = problem_of(arrays, mask, **options)
    steps = Steps(problem)
    walk = compiled_forward(problem, steps, threads, lse=True)
    assert walk is not None
    back = compiled_backward(problem, Known(walk.output, walk.lse, *arrays[3:]), steps, threads)
    assert back is not None
    return Results(walk.output, walk.lse, *back.gradients()[:3])


def by_formula(arrays: Arrays, mask: Any = None, keep: Any = True, rate: float = 0.0, **options: Any) -> Results:
    """Compute all results in float64, where `keep` tells which weights survive dropout."""
    query, key, value, gradient, grad_lse = (a.astype(np.float64) for a in arrays)
    group, scale = query.shape[1] // key.shape[1], options.get("scale", query.shape[-1] ** -0.5)
    _, weights, lse = reference.attention(query, key, value, mask, **options)
    key, value = (np.repeat(a, group, axis=1) for a in (key, value))
    kept = np.broadcast_to(keep, weights.shape) / (1.0 - rate)
    grad_weights = gradient @ value.mT * kept
    slopes = weights * (grad_weights - (weights * grad_weights).sum(axis=-1, keepdims=True) + grad_lse[..., None])
    if "softcap" in options:
        slopes *= 1.0 - np.tanh(query @ key.mT * scale / options["softcap"]) ** 2
    of_heads = (slopes.mT @ query * scale, (weights * kept).mT @ gradient)
    B, H, *shape = key.shape
    of_keys = (a.reshape(B, H // group, group, shape[0], -1).sum(axis=2) for a in of_heads)
    return Results((weights * kept) @ value, lse, slopes @ key * scale, *of_keys)


def survivors(arrays: Arrays, rate: float, seed: int, **options: Any) -> np.ndarray:
    """Return which weights survive dropout, as the plain formula of the package draws them: (B, H, Sq, Sk)."""
    query, key = (a.astype(np.float64) for a in arrays[:2])
    value = np.broadcast_to(np.eye(key.shape[-2]), (*key.shape[:-1], key.shape[-2]))
    return flash_attention(0.0 * query, key, value, impl="dense", dropout_rate=rate, rng=seed, **options) != 0.0


def assert_close(found: Results, expected: Results, factor: float = 1.0) -> None:
    """Compare results with a tolerance of some units in the last place of the largest number of each array."""
    n = found.key.shape[-2]
    assert not expected.key[..., n:, :].any()  # keys behind the last length are cut off
    assert not expected.value[..., n:, :].any()
    expected = expected._replace(key=expected.key[..., :n, :], value=expected.value[..., :n, :])
    for name, x, y in zip(Results._fields, found, expected, strict=True):
        assert x.shape == y.shape, name
        bound = factor * 30 * np.finfo(x.dtype).eps * np.abs(y[np.isfinite(y)]).max(initial=0.0)
        np.testing.assert_allclose(x, y, rtol=0, atol=bound, err_msg=name)
