"""How large the program of JAX's walker is: each loop and each branch of a condition is compiled anew for a call."""

import functools
import importlib

import numpy as np
import pytest

import attention_xp as ax
from attention_xp.masks import BlockMask

pytestmark = pytest.mark.backends("jax")

OPTIONS = {
    "full": {},
    "ragged": {"tile": (16, 24)},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "window": (20, 0)},
    "blocks": {"mask": BlockMask(np.eye(4, dtype=bool), 16)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_loop_visits_full_and_mixed_tiles(make, options):
    jax, x = importlib.import_module("jax"), make(np.zeros((1, 2, 64, 8)))
    call = functools.partial(ax.flash_attention, impl="tiled", **{"tile": (16, 16), **options})
    program = jax.jit(call).lower(x, x, x).as_text()
    assert program.count("stablehlo.while") == 2  # over jobs, and over the tiles of one
