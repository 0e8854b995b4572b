"""Layer normalisation."""

import numpy as np
import pytest

from attention_xp import layer_normalization
from tests._assertions import assert_close, dtype_name
from tests._backends import to_numpy
from tests._inputs import normal


def formula(x, gamma, beta, epsilon=1e-5):
    """Layer normalisation in float64."""
    x = np.asarray(x, np.float64)
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 3, 4, 8), (2, 0, 8), (3, 1)])
def test_shapes(library, make, shape):
    x, gamma, beta = normal(*shape), normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    assert_close(layer_normalization(make(x), make(gamma), make(beta)), formula(x, gamma, beta), library)


@pytest.mark.parametrize("epsilon", [1e-5, 0.1, 0.0])
def test_epsilon(library, make, epsilon):
    x, gamma, beta = normal(3, 8), normal(8, seed=1), normal(8, seed=2)
    actual = layer_normalization(make(x), make(gamma), make(beta), epsilon)
    assert_close(actual, formula(x, gamma, beta, epsilon), library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(library, make, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    x, gamma, beta = (make(a, dtype) for a in (100.0 * normal(3, 8), normal(8, seed=1), normal(8, seed=2)))
    expected = formula(*(to_numpy(a) for a in (x, gamma, beta)))
    assert_close(layer_normalization(x, gamma, beta), expected, library, dtype=dtype)


@pytest.mark.backends("numpy", "torch", "jax", "cupy")
def test_float32_parameters_do_not_promote(make):
    x, gamma, beta = make(normal(3, 8), "float16"), make(normal(8)), make(normal(8))
    assert dtype_name(layer_normalization(x, gamma, beta).dtype) == "float16"


def test_a_constant_row_becomes_beta(library, make):
    beta = normal(8)
    actual = layer_normalization(make(np.full((2, 8), 3.0)), make(np.ones(8)), make(beta))
    assert_close(actual, np.broadcast_to(beta, (2, 8)), library)


def test_a_large_mean_costs_no_digits(library, make):
    x = np.round(normal(4, 64) * 64) / 64
    gamma, beta = np.ones(64), np.zeros(64)
    actual = layer_normalization(make(x + 4096.0), make(gamma), make(beta))
    assert_close(actual, formula(x, gamma, beta), library, atol=1e-3)


@pytest.mark.backends("strict")
def test_a_scale_on_another_device(make, xp):
    gamma = xp.ones(3, dtype=xp.float32, device=xp.Device("CPU_DEVICE"))
    with pytest.raises(ValueError, match=r"gamma is on .* but x is on"):
        layer_normalization(make(np.ones((2, 3))), gamma, make(np.zeros(3)))


@pytest.mark.parametrize("given", [(), ("gamma",), ("beta",)], ids=str)
def test_scale_and_shift_may_be_left_out(library, make, given):
    x, parameters = normal(3, 8), {"gamma": normal(8, seed=1), "beta": normal(8, seed=2)}
    chosen = {name: parameters[name] for name in given}
    expected = formula(x, chosen.get("gamma", 1.0), chosen.get("beta", 0.0))
    assert_close(layer_normalization(make(x), **{n: make(a) for n, a in chosen.items()}), expected, library)
