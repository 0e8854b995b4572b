"""Products that are cut into blocks of keys are those of the whole, whatever is left behind the last block."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy import few_rows
from tests._inputs import normal


@pytest.mark.parametrize("has_kernels", [False, True])
@pytest.mark.parametrize("m", [1, 2, 5, 64, 65])
@pytest.mark.parametrize("n", [0, 1, 16, 240, 600])
def test_products_of_few_rows(n, m, has_kernels, monkeypatch):
    monkeypatch.setattr(few_rows, "has_small_kernels", lambda: has_kernels)
    rows, keys, whole = normal(3, m, 7), normal(3, 700, 7, seed=1)[:, 50 : 50 + n], np.full((3, m, 700), np.nan)
    few_rows.scores_into(whole[..., 30 : 30 + n], rows, keys)
    np.testing.assert_allclose(whole[..., 30 : 30 + n], rows @ keys.swapaxes(-1, -2), atol=1e-12)
    assert np.isnan(np.delete(whole, np.s_[30 : 30 + n], axis=-1)).all()
    weights = normal(3, m, n, seed=2)
    np.testing.assert_allclose(few_rows.weighted(weights, keys), weights @ keys, atol=1e-12)
