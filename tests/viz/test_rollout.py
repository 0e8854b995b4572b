"""Rollout against the formula of the paper, on all libraries and inside their transformations."""

import importlib

import numpy as np
import pytest

from attention_xp import softmax
from attention_xp.viz import attention_rollout
from tests._assertions import assert_close
from tests._inputs import normal


def rows_of(*shape):
    """Random weights whose rows sum up to 1."""
    return np.asarray(softmax(2.0 * normal(*shape)))


def by_the_paper(layers):
    """Half of each layer's mean over heads and half of the identity, multiplied from the last layer to the first."""
    eye = np.eye(layers[0].shape[-1])
    steps = [0.5 * (w.mean(axis=-3) if w.ndim > 3 else w) + 0.5 * eye for w in layers]
    return np.linalg.multi_dot(steps[::-1]) if steps[0].ndim == 2 else steps[2] @ steps[1] @ steps[0]


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5), (2, 4, 5, 5), (2, 3, 4, 5, 5)], ids=str)
def test_the_formula(library, make, shape):
    layers = [rows_of(*shape) + 0.0 * i for i in range(2)] + [rows_of(*shape)[..., ::-1].copy()]
    rollout = attention_rollout([make(w) for w in layers])
    assert_close(rollout, by_the_paper(layers), library)


def test_narrow_dtypes_are_computed_in_float32(library, make):
    layers = [rows_of(2, 4, 6, 6)] * 3
    for dtype in set(library.dtypes()) & {"float16", "bfloat16"}:
        assert_close(attention_rollout([make(w, dtype) for w in layers]), by_the_paper(layers), library, dtype=dtype)


def test_layers_may_differ_in_heads_and_rows_may_be_empty(make, library):
    first, second = rows_of(1, 4, 3, 3), rows_of(1, 2, 3, 3)
    second[..., 0, :] = 0.0  # a row that attends nothing keeps what it holds
    rollout = attention_rollout([make(first), make(second)])
    step, eye = second.mean(axis=1) + np.eye(3), np.eye(3)
    expected = (step / step.sum(axis=-1, keepdims=True)) @ (0.5 * first.mean(axis=1) + 0.5 * eye)
    assert_close(rollout, expected, library)


@pytest.mark.backends("jax")
def test_under_jit(make, library):
    jax = importlib.import_module("jax")
    layers = [make(rows_of(1, 2, 4, 4))] * 3
    assert_close(jax.jit(attention_rollout)(layers), by_the_paper([rows_of(1, 2, 4, 4)] * 3), library)


@pytest.mark.backends("torch")
def test_gradients_and_compile(make, library):
    torch = importlib.import_module("torch")
    layers = [make(rows_of(1, 2, 4, 4), "float64").requires_grad_() for _ in range(3)]
    compiled = torch.compile(lambda *w: attention_rollout(w), fullgraph=True, backend="eager")
    assert_close(compiled(*layers).detach(), by_the_paper([rows_of(1, 2, 4, 4)] * 3), library, dtype="float64")
    assert torch.autograd.gradcheck(lambda *w: attention_rollout(w), layers)


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (np.eye(3), TypeError, "must be a list or tuple of arrays, one for each layer, got ndarray"),
        ([], ValueError, "at least one layer"),
        ([np.eye(3, dtype=int)], TypeError, "must be a floating array"),
        ([[1.0]], TypeError, r"weights_per_layer\[0\] must be an array, got list"),
        ([np.ones((2, 3))], ValueError, r"square: expected \(..., H, S, S\).*got \(2, 3\)"),
        ([np.ones(3)], ValueError, "square"),
        ([np.eye(3), np.eye(4)], ValueError, r"the first, \(3, 3\) float64, got weights_per_layer\[1\] \(4, 4\)"),
        ([np.eye(3), np.eye(3, dtype=np.float32)], ValueError, "dtype"),
        ([np.ones((1, 2, 3, 3)), np.ones((2, 2, 3, 3))], ValueError, "one batch shape"),
    ],
)
def test_errors(weights, error, text):
    with pytest.raises(error, match=text):
        attention_rollout(weights)
