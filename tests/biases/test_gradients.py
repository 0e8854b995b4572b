"""The gradients of biases that are rules: of the formula, by automatic differentiation, and by `attention_vjp`."""

import numpy as np
import pytest

from attention_xp import attention_vjp, scaled_dot_product_attention
from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from tests._assertions import assert_close
from tests._inputs import inputs, normal

Q, K, V = inputs((2, 4, 9, 4), (2, 2, 11, 4), (2, 2, 11, 3))
G = normal(2, 4, 9, 3, seed=3)
ARRAYS = {AlibiBias: np.asarray([0.5, 0.25, 0.1, 0.05]), RelativePositionBias: normal(8, 4)}
OPTIONS = {"is_causal": True, "query_offset": 2, "softcap": 2.0}


def differences(cls, array):
    """Return the gradient of the sum of outputs times G by central differences on NumPy."""
    slopes = np.zeros_like(array)
    for at in np.ndindex(array.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = array.copy()
            moved[at] += step
            output, _ = scaled_dot_product_attention(Q, K, V, bias=cls(moved), impl="dense", **OPTIONS)
            ends.append(np.sum(output * G))
        slopes[at] = (ends[0] - ends[1]) / 2e-5
    return slopes


@pytest.mark.parametrize("cls", ARRAYS)
@pytest.mark.parametrize("tile", [None, (4, 5)])
def test_vjp_gives_the_gradients_of_the_arrays(library, make, cls, tile):
    _, vjp = attention_vjp(make(Q), make(K), make(V), bias=cls(make(ARRAYS[cls])), impl="tiled", tile=tile, **OPTIONS)
    (found,) = vjp(make(G)).bias
    assert_close(found, differences(cls, ARRAYS[cls]), library)


def test_a_bias_without_vjp_has_no_gradients(make):
    class Constant(Bias):
        def values(self, region):
            return region.floating(region.q_idx - region.kv_idx)

    with pytest.raises(ValueError, match=r"Constant has no gradients: expected a method vjp"):
        attention_vjp(make(Q), make(K), make(V), bias=Constant(), query_offset=0)
