"""NumPy's way forward by compiled loops, which read arrays at their addresses."""

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp._engine.walkers.numpy.compiled import found

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    monkeypatch.setattr(found, "LEAST", 0)
    monkeypatch.setattr(found, "FEWEST_ROWS", 0)


@pytest.mark.parametrize(("keys", "values"), [(1, 3), (3, 1), (1, 1)])
def test_batch_items_may_share_keys_or_values_alone(keys, values):
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((3, 17, 7)), rng.standard_normal((keys, 70, 7))
    value = np.full((3, 70, 5), np.nan)[:values]  # what follows is not a number
    value[...] = rng.standard_normal(value.shape)
    tiled, dense = (flash_attention(query, key, value, impl=impl) for impl in ("tiled", "dense"))
    np.testing.assert_allclose(tiled, dense, rtol=1e-12, atol=1e-14)


def test_rows_of_the_smallest_number_have_the_log_sum_exp_of_the_backward_pass():
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((1, 2, 70, 8)).astype(np.float32) for _ in range(3)]
    mask = np.where(np.arange(70)[:, None] < 9, np.finfo(np.float32).min, np.float32(0.0))
    output, vjp = attention_vjp(*arrays, np.broadcast_to(mask, (70, 70)), impl="tiled")
    assert all(np.isfinite(a).all() for a in (output, *vjp(output)[:4]))
