"""The softmax by itself."""

import numpy as np
import pytest

from attention_xp import softmax
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import normal


def formula(x, axis=-1):
    """The softmax in float64."""
    x = np.asarray(x, np.float64)
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("axis", [-1, -2, -3, 0, 1, 2])
def test_every_axis(library, make, axis):
    x = normal(2, 3, 4)
    assert_close(softmax(make(x), axis), formula(x, axis), library)


def test_the_axis_is_the_last_by_default_and_has_a_name(library, make):
    x = normal(2, 3)
    assert_close(softmax(make(x)), formula(x), library)
    assert_close(softmax(make(x), axis=0), formula(x, 0), library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(library, make, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    x = make(normal(3, 50), dtype)
    assert_close(softmax(x), formula(to_numpy(x)), library, dtype=dtype)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits(library, make, shift):
    x = np.asarray([1.0, 2.0, 3.0])
    assert_close(softmax(make(x + shift)), formula(x), library)


def test_large_differences(library, make):
    assert_close(softmax(make([-1000.0, 0.0, 1000.0])), [0.0, 0.0, 1.0], library)


def test_minus_infinity_has_no_share(library, make):
    assert_close(softmax(make([[0.0, -np.inf, 0.0], [-np.inf, 5.0, -np.inf]])), [[0.5, 0, 0.5], [0, 1.0, 0]], library)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,)])
def test_empty(library, make, shape):
    assert_close(softmax(make(np.zeros(shape))), np.zeros(shape), library)


def test_the_input_is_not_written_to(make):
    x = normal(3, 4)
    made = make(x)
    softmax(made)
    np.testing.assert_array_equal(to_numpy(made), x.astype(np.float32))


def test_axis_of_numpy(library, make):
    assert_close(softmax(make(np.zeros((2, 3))), np.int64(0)), np.full((2, 3), 0.5), library)
