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


@pytest.mark.parametrize("options", [OPTIONS["causal"], OPTIONS["window"]], ids=["causal", "window"])
def test_tiles_that_nothing_moves_are_constants(make, options):
    jax, x = importlib.import_module("jax"), make(np.random.default_rng(0).standard_normal((1, 2, 72, 8)))
    call = jax.jit(functools.partial(ax.flash_attention, impl="tiled", **{"tile": (16, 24), **options}))
    moved = jax.jit(
        lambda x, offset: ax.flash_attention(x, x, x, impl="tiled", tile=(16, 24), query_offset=offset, **options)
    )
    offset = jax.numpy.int32(0)
    programs = call.lower(x, x, x).as_text(), moved.lower(x, offset).as_text()
    assert ["stablehlo.sort" in program for program in programs] == [False, True]
    np.testing.assert_array_equal(call(x, x, x), moved(x, offset))
