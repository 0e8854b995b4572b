"""Minus infinity in a bias excludes as it does in a mask: what the key or the value holds does not matter."""

import math

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention, scaled_dot_product_attention
from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from tests._assertions import assert_close
from tests._autodiff import gradients
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests.reference import attention

pytestmark = pytest.mark.with_nan

OFFSET, SHAPE = 4, (6, 8)  # with the offset all rows are far from key 0
Q, K, V = inputs((1, 2, 6, 4), (1, 2, 8, 4), (1, 2, 8, 3))
BAD_K, BAD_V = K.copy(), V.copy()
BAD_K[:, :, 0], BAD_V[:, :, 0] = np.nan, np.inf
CLEAN_K, CLEAN_V = (np.where(np.isfinite(a), a, 0.0) for a in (BAD_K, BAD_V))


class FarBias(Bias):
    """A bias of a user that excludes the keys that are far away."""

    def values(self, region):
        distance = region.q_idx - region.kv_idx
        return region.xp.where(distance > 3, -math.inf, region.floating(distance) * 0.25)

    def vjp(self, region, grad_scores):
        return ()


DISTANCE = np.arange(SHAPE[0])[:, None] + OFFSET - np.arange(SHAPE[1])
TABLE = np.asarray([0.5, -1.0, 2.0, -np.inf])
BIASES = {
    "array": (lambda make: make(np.where(DISTANCE > 3, -np.inf, DISTANCE * 0.25)), np.where(DISTANCE > 3, -np.inf, DISTANCE * 0.25)),
    "a user's": (lambda make: FarBias(), np.where(DISTANCE > 3, -np.inf, DISTANCE * 0.25)),
    "table": (
        lambda make: RelativePositionBias(make(TABLE[:, None]), bidirectional=False, max_distance=4),
        TABLE[np.clip(DISTANCE, 0, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("build", BIASES.values(), ids=BIASES)
def test_what_is_excluded_does_not_matter(library, make, impl, build):
    query, key, value, bias = make(Q), make(BAD_K), make(BAD_V), build[0](make)
    tile = (4, 3) if impl == "tiled" else None
    output, weights = scaled_dot_product_attention(
        query, key, value, bias=bias, query_offset=OFFSET, impl=impl, tile=tile
    )
    expected = attention(Q, CLEAN_K, CLEAN_V, bias=build[1], query_offset=OFFSET)
    assert_close(output, expected.output, library)
    assert_close(weights, expected.weights, library)
    output, lse = flash_attention(
        query, key, value, bias=bias, query_offset=OFFSET, impl=impl, tile=tile, return_lse=True
    )
    assert_close(output, expected.output, library)
    assert_close(lse, expected.lse, library)


@pytest.mark.backends("torch", "jax")
@pytest.mark.parametrize("build", BIASES.values(), ids=BIASES)
def test_no_gradient_is_nan(library, make, impl, build):
    upstream, tile = make(normal(1, 2, 6, 3, seed=7)), (4, 3) if impl == "tiled" else None

    def attend(query, key, value, *array):
        bias = array[0] if array else build[0](make)
        return flash_attention(query, key, value, bias=bias, query_offset=OFFSET, impl=impl, tile=tile) * upstream

    array = (build[1],) if build is BIASES["array"] else ()
    found = gradients(library, attend)(Q, BAD_K, BAD_V, *array)
    expected = gradients(library, attend)(Q, CLEAN_K, CLEAN_V, *array)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert np.all(found[1][:, :, 0] == 0.0)
    assert np.all(found[2][:, :, 0] == 0.0)


@pytest.mark.parametrize("build", BIASES.values(), ids=BIASES)
def test_nor_is_that_of_the_product(library, make, impl, build):
    bias, upstream = build[0](make), make(normal(1, 2, 6, 3, seed=7))
    options = {"bias": bias, "query_offset": OFFSET, "impl": impl, "tile": (4, 3) if impl == "tiled" else None}
    found = attention_vjp(make(Q), make(BAD_K), make(BAD_V), **options)[1](upstream)
    expected = attention_vjp(make(Q), make(CLEAN_K), make(CLEAN_V), **options)[1](upstream)
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert_close(one, to_numpy(other), library)
    parts = found.bias if isinstance(found.bias, tuple) else (found.bias,)
    assert all(np.isfinite(to_numpy(part)).all() for part in parts)


@pytest.mark.backends("torch", "jax")
def test_a_row_that_a_bias_leaves_nothing(library, make, impl):
    bias = np.zeros(SHAPE)
    bias[2] = -np.inf

    def attend(query, key, value, bias):
        output, lse = flash_attention(query, key, value, bias=bias, impl=impl, return_lse=True)
        return output[..., 2, :].sum() + (output**2).sum() + lse[..., 3:].sum()

    for slope in gradients(library, attend)(Q, K, V, bias):
        assert np.isfinite(slope).all()
    output = flash_attention(make(Q), make(K), make(V), bias=make(bias), impl=impl)
    assert np.all(to_numpy(output)[:, :, 2] == 0.0)


def test_who_says_that_nothing_is_excluded_is_not_asked_twice():
    asked = []

    class Counted(Bias):
        def values(self, region):
            asked.append(region.sizes)
            return region.floating(region.kv_idx)

    class Sure(Counted):
        may_exclude = False

    for kind, times in ((Counted, 2), (Sure, 1)):
        asked.clear()
        flash_attention(Q, K, V, bias=kind(), impl="dense")
        assert len(asked) == times
    assert not AlibiBias(np.ones(2)).may_exclude
    assert not RelativePositionBias(np.ones((4, 1))).may_exclude
    assert RelativePositionBias(TABLE[:, None], bidirectional=False, max_distance=4).may_exclude
