"""What compiled loops make of odd calls: shared keys, the smallest numbers."""

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp._engine.walkers.numpy.compiled import found

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    monkeypatch.setattr(found, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(found, "FEWEST_PACKED_ROWS", 0)


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


@pytest.mark.parametrize("sink", [np.nan, np.inf, 3e38])
def test_sinks_at_the_end_of_the_range(sink):
    arrays = [np.ones((1, 1, 70, 8), np.float32)] * 3
    found = [
        flash_attention(*arrays, sinks=np.asarray([sink], np.float32), impl=impl, return_lse=True)
        for impl in ("tiled", "dense")
    ]
    for tiled, dense in zip(*found, strict=True):
        np.testing.assert_array_equal(np.minimum(tiled, np.float32(1e37)), np.minimum(dense, np.float32(1e37)))


def test_the_size_of_values_does_not_change_what_counts():
    arrays = [np.ones((1, 1, 70, 8), np.float32)] * 3
    low = np.zeros((70, 70), np.float32)
    low[3] = np.finfo(np.float32).min
    sums = [
        flash_attention(*arrays[:2], arrays[2] * np.float32(size), low, bias=low, impl="tiled", return_lse=True)[1]
        for size in (1.0, 1e20)
    ]
    np.testing.assert_array_equal(*sums)


@pytest.mark.parametrize(
    ("cap", "factor", "dtype"), [(1e-22, 1.0, "float32"), (5.0, 1.0, "float32"), (5.0, 1e15, "float64")]
)
def test_slopes_of_a_soft_cap(cap, factor, dtype):
    """They are 0 where the tangent is 1, and no square is too small a number."""
    x = np.linspace(-1.0, 1.0, 70, dtype=dtype).reshape(1, 1, 70, 1)
    tiled, dense = (
        attention_vjp(x * factor, x, x, softcap=cap, scale=1.0, impl=impl)[1](x).query for impl in ("tiled", "dense")
    )
    np.testing.assert_allclose(tiled, dense, rtol=1e-4, atol=1e-5 * np.abs(dense).max())
