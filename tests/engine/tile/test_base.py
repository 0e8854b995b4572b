"""The base of the powers, which depends on the processor, shows in no result."""

import math

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp._engine.tile import base
from attention_xp._engine.walkers.numpy import backward, forward
from tests._inputs import inputs, normal

OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "large": {"scale": 8.0},
    "bias": {"bias": normal(2, 50, 70).astype("float32")},
    "lowest": {"mask": np.where(np.arange(70) < 40, 0.0, np.finfo("float32").min).astype("float32")},
    "empty": {"mask": np.where(np.arange(50)[:, None] % 7 == 0, -math.inf, 0.0).astype("float32")},
    "softcap": {"softcap": 3.0, "window": (9, 30), "query_offset": 20},
    "sinks": {"sinks": normal(2).astype("float32")},
}


@pytest.fixture
def compute(monkeypatch):
    """Return output, log-sum-exp and gradients of tiles in base 2, or in base e."""

    def compute(options, *, is_binary):
        monkeypatch.setattr(base, "_is_vectorised", lambda function, dtype: is_binary)
        for walker in (forward, backward):  # steps that are compiled as a whole are to base 2 everywhere
            monkeypatch.setattr(walker, "steps_of", lambda problem: None)
        assert (base.base_of(np).log_2 == 1.0) == is_binary
        q, k, v = (x.astype("float32") for x in inputs((3, 2, 50, 16), (3, 2, 70, 16)))
        options = {"query_offset": 0, **options}
        results = flash_attention(q, k, v, impl="tiled", tile=(16, 32), return_lse=True, **options)
        _, vjp = attention_vjp(q, k, v, impl="tiled", tile=(16, 32), **options)
        return [*results, *(gradient for gradient in vjp(q)[:3])]

    return compute


@pytest.mark.parametrize("name", OPTIONS)
def test_both_bases_give_the_same(name, compute):
    binary, natural = (compute(OPTIONS[name], is_binary=is_binary) for is_binary in (True, False))
    for two, e in zip(binary, natural, strict=True):
        size = np.max(np.abs(two), where=np.isfinite(two), initial=0.0)
        assert np.allclose(two, e, rtol=1e-4, atol=1e-4 * size)
    assert any(np.any(two != e) for two, e in zip(binary, natural, strict=True))
