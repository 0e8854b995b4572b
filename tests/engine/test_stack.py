"""A tile of JAX's walker on a GPU is one of all heads and batch items that are masked alike."""

import importlib

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine import tile_sizes
from attention_xp._engine.problem import Problem
from attention_xp.masks import BlockMask, CausalMask, longformer_mask
from tests._backends import to_numpy
from tests._inputs import normal
from tests.score_mods import distance_penalty

pytestmark = pytest.mark.backends("jax")

B, H, HKV, SQ, SK, D = 2, 6, 3, 70, 83, 4
IS_GLOBAL = np.arange(SK) % 40 == 0
PER_HEAD = BlockMask(np.asarray([np.eye(6, dtype=bool), np.tri(6, dtype=bool)] * 3), 16)  # and the first key block

OPTIONS = {
    "none": ({}, (B, H)),
    "causal, a window": ({"is_causal": True, "window": (20, 5), "query_offset": 13}, (B, H)),
    "rules": ({"mask": longformer_mask(10, IS_GLOBAL) | CausalMask(), "query_offset": 13}, (B, H)),
    "soft cap, bias, sinks": ({"softcap": 2.0, "bias": normal(H, SQ, SK), "sinks": normal(H)}, (B, H)),
    "dropout": ({"dropout_rate": 0.3, "rng": 5}, (B, H)),
    "a function": ({"score_mod": distance_penalty}, (B, H)),
    "lengths of each item": ({"key_lengths": np.asarray([83, 31])}, (1, H)),
    "offsets of each item": ({"is_causal": True, "query_offset": np.asarray([13, 0])}, (1, H)),
    "a mask of each head": ({"mask": PER_HEAD, "query_offset": 13}, (1, 1)),
    "an array of each head": ({"mask": normal(H, SQ, SK) > -0.5}, (1, 1)),
}


@pytest.fixture(autouse=True)
def _on_a_gpu(library, monkeypatch):
    """Say that arrays are on a GPU, and forget what was compiled when they were not, or else will be."""
    jax = importlib.import_module("jax")
    jax.clear_caches()
    monkeypatch.setattr(tile_sizes, "cuda_device", lambda array: "a GPU")
    yield
    jax.clear_caches()


@pytest.mark.parametrize(("options", "stack"), OPTIONS.values(), ids=OPTIONS)
def test_heads_and_items_together_give_the_numbers_and_gradients_of_each_alone(library, options, stack):
    jax = importlib.import_module("jax")
    q, k, v = (library.array(normal(*shape)) for shape in ((B, H, SQ, D), (B, HKV, SK, D), (B, HKV, SK, D)))
    options = {n: _made(library, x) for n, x in options.items()}

    def loss(impl):
        return lambda q, k, v: (flash_attention(q, k, v, impl=impl, tile=(32, 24), **options) ** 2).sum()

    assert tile_sizes.stack(_problem(q, k, v, options), 32 * 24) == stack
    (actual, slopes), (expected, exact) = (
        jax.value_and_grad(loss(impl), argnums=(0, 1, 2))(q, k, v) for impl in ("tiled", "dense")
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for one, other in zip(slopes, exact, strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-4, atol=1e-5)


def test_arrays_without_heads_and_keys_that_all_items_share(library):
    q, k, v = (library.array(normal(*shape)) for shape in ((3, SQ, D), (1, SK, D), (1, SK, D)))
    options = {"is_causal": True, "query_offset": 13}
    assert tile_sizes.stack(_problem(q, k, v, options), 32 * 24) == (3,)
    actual, expected = (flash_attention(q, k, v, impl=impl, tile=(32, 24), **options) for impl in ("tiled", "dense"))
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=1e-5, atol=1e-6)


def test_as_many_go_together_as_there_is_memory_for(library):
    array = library.array(np.zeros((4, 8, 128, 2), np.float32))
    problem = _problem(array, array[:, :2], array[:, :2], {})
    room = 2**24
    assert tile_sizes.stack(problem, room // 32) == (4, 8)
    assert tile_sizes.stack(problem, room // 20) == (2, 8)
    assert tile_sizes.stack(problem, room // 6) == (1, 4)  # whole groups of four, or a part of one
    assert tile_sizes.stack(problem, room // 3) == (1, 2)
    assert tile_sizes.stack(problem, 2 * room) == (1, 1)


def _made(library, option):
    """Return an option for arrays of the library."""
    if option is distance_penalty:
        return distance_penalty(library.namespace())
    return library.array(option) if isinstance(option, np.ndarray) else option


def _problem(query, key, value, options):
    rest = {name: x for name, x in options.items() if name not in ("mask", "dropout_rate")}
    return Problem.of(query, key, value, options.get("mask"), options.get("dropout_rate", 0.0), rest)
