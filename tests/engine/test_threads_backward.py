"""NumPy's way back: what its shortcuts must not change."""

import numpy as np
import pytest

from attention_xp import attention_vjp
from tests._inputs import normal


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"softcap": 3.0}])
@pytest.mark.parametrize("level", [-300.0, -30.0, -15.0, 25.0, 60.0, 300.0])
def test_a_constant_in_all_scores_changes_no_gradient(level, options, dtype):
    query, key, value, gradient = (a.astype(dtype) for a in (normal(2, 3, 150, 8, seed=i) for i in range(4)))
    plain = attention_vjp(query, key, value, **options)[1](gradient)
    bias = np.full((1, 1), level, dtype)
    moved = attention_vjp(query, key, value, bias=bias, impl="tiled", tile=(64, 32), **options)[1](gradient)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(
            getattr(moved, name), getattr(plain, name), rtol=0, atol=1e-4 if dtype == "float32" else 1e-12
        )


def test_keys_that_no_tile_visits_have_no_gradient():
    query, key, value, gradient = (normal(1, 2, 300, 8, seed=i) for i in range(4))
    mask = np.zeros((300, 300), bool)
    mask[:, 100:150] = mask[40:90, 220:250] = True
    slopes = attention_vjp(query, key, value, mask=mask, impl="tiled", tile=(32, 16))[1](gradient)
    dense = attention_vjp(query, key, value, mask=mask, impl="dense")[1](gradient)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(slopes, name), getattr(dense, name), rtol=1e-10, atol=1e-12)
    assert not slopes.key[..., [*range(100), *range(150, 220), *range(250, 300)], :].any()
