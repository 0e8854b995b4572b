"""JAX's mode that looks for infinities: what is excluded is minus infinity on the way, and nobody sees it."""

import jax
import numpy as np
import pytest

from attention_xp import attention_statistics, attention_vjp, flash_attention, scaled_dot_product_attention
from tests._inputs import inputs

IDS = np.asarray([0, 0, 1, 1, 1])


@pytest.fixture(autouse=True)
def looks_for_infinities():
    with jax.debug_infs(True):
        yield


@pytest.mark.backends("jax")
@pytest.mark.parametrize("impl", ["auto", "dense", "tiled"])
def test_excluded_scores_are_not_seen(make, impl):
    x = make(inputs((1, 2, 5, 4))[0])
    ids = make(IDS, "int32")
    options = {"impl": impl, "is_causal": True, "window": (2, 0)}
    scaled_dot_product_attention(x, x, x, ids[:, None] == ids[None, :], **options)
    flash_attention(x, x, x, key_lengths=3, return_lse=True, **options | {"window": None})
    attention_statistics(x, x, **options)
    output, vjp = attention_vjp(x, x, x, **options)
    vjp(output)
    jax.grad(lambda x: flash_attention(x, x, x, **options).sum())(x)
