"""A tile of JAX's walker on a GPU is one of all heads and batch items that are masked alike."""

import importlib

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._backend.libraries import cuda_device
from attention_xp._engine.plan import tile_sizes
from attention_xp._engine.problem.problem import Problem
from attention_xp.masks import BlockMask, CausalMask, longformer_mask
from tests._backends import to_numpy
from tests._inputs import normal
from tests._quick import some_rare
from tests.score_mods import distance_penalty

pytestmark = pytest.mark.backends("jax")

B, H, HKV, SQ, SK, D = 2, 6, 3, 70, 83, 4
IS_GLOBAL = np.arange(SK) % 40 == 0
PER_HEAD = BlockMask(np.asarray([np.eye(6, dtype=bool), np.tri(6, dtype=bool)] * 3), 16)

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


TILE = (32, 24)


@pytest.fixture(autouse=True)
def jax(library, monkeypatch):
    """Say that arrays are on CUDA, and forget what was compiled when they were not, or else will be."""
    jax = importlib.import_module("jax")
    jax.clear_caches()
    monkeypatch.setattr(tile_sizes, "cuda_device", lambda array: "CUDA")
    yield jax
    jax.clear_caches()


def check(jax, arrays, *, transform=lambda function: function, **options):
    """Compare the numbers and gradients of tiles with those of the formula."""

    def loss(impl):
        return lambda *arrays: (flash_attention(*arrays, impl=impl, **{"tile": TILE} | options) ** 2).sum()

    (actual, slopes), (expected, exact) = (
        transform(jax.value_and_grad(loss(impl), argnums=(0, 1, 2)))(*arrays) for impl in ("tiled", "dense")
    )
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=1e-5)
    for one, other in zip(slopes, exact, strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-4, atol=1e-5)


def stack(arrays, **options):
    rest = {name: x for name, x in options.items() if name not in ("mask", "dropout_rate")}
    problem = Problem.of(*arrays, options.get("mask"), options.get("dropout_rate", 0.0), {"tile": TILE} | rest)
    return tile_sizes.stack(problem)


def inputs(library, query=(B, H, SQ, D), key=(B, HKV, SK, D)):
    return [library.array(normal(*shape)) for shape in (query, key, key)]


# The others are tiled alike, and differ in what is computed on a tile.
TELLING = {
    "causal, a window",
    "soft cap, bias, sinks",
    "lengths of each item",
    "a mask of each head",
    "an array of each head",
}


@pytest.mark.parametrize(("options", "expected"), some_rare(OPTIONS, lambda name: name not in TELLING))
def test_heads_and_items_together_give_the_numbers_and_gradients_of_each_alone(library, jax, options, expected):
    options = {n: library.array(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    if "score_mod" in options:
        options["score_mod"] = distance_penalty(library.namespace())
    arrays = inputs(library)
    assert stack(arrays, **options) == expected
    check(jax, arrays, **options)


SHAPES = {
    "no heads, keys for all items": ((3, SQ, D), (1, SK, D), (3,)),
    "two axes": ((SQ, D), (SK, D), ()),
    "three axes of items": ((2, 1, 3, 4, SQ, D), (2, 1, 1, 2, SK, D), (2, 1, 3, 4)),
    "few rows": ((B, H, 20, D), (B, HKV, SK, D), (B, H)),
}


@pytest.mark.parametrize(("query", "key", "expected"), some_rare(SHAPES, lambda name: name == "two axes"))
def test_shapes(library, jax, query, key, expected):
    arrays = inputs(library, query, key)
    assert stack(arrays) == expected
    check(jax, arrays, is_causal=True, query_offset=13)


@pytest.mark.parametrize(
    ("tiles", "expected"),
    [(11, (1, 6)), (5, (1, 2)), (3, (1, 2)), (1, (1, 1)), (0.5, (1, 1)), (12, (2, 6)), (50, (2, 6))],
)
def test_as_many_go_together_as_there_is_memory_for(library, jax, monkeypatch, tiles, expected):
    """Whole groups of two heads, or a part of one."""
    monkeypatch.setattr(tile_sizes, "_LARGEST_ON_CUDA", int(tiles * 32 * 24))
    arrays = inputs(library)
    assert stack(arrays) == expected
    if expected in ((1, 2), (1, 6)):
        check(jax, arrays, is_causal=True, query_offset=13)


def test_inside_of_jit_and_vmap(library, jax):
    arrays = inputs(library, (3, B, H, SQ, D), (3, B, HKV, SK, D))
    check(jax, arrays, transform=lambda function: jax.jit(jax.vmap(function)), is_causal=True, query_offset=13)


def test_a_function_keeps_its_tiles_where_a_trace_knows_the_device_no_more(library, jax, monkeypatch):
    """Arrays on a CPU, while the default device is another: outside of a trace they say so."""
    monkeypatch.setattr(tile_sizes, "cuda_device", lambda a: "CUDA" if isinstance(a, jax.core.Tracer) else None)
    slope = library.array(np.asarray(0.5))
    check(jax, inputs(library), score_mod=lambda score, b, h, q, k: score * slope)


def test_the_default_device_may_be_the_name_of_a_platform(library, jax, monkeypatch):
    monkeypatch.setattr(tile_sizes, "cuda_device", cuda_device)
    with jax.default_device("cpu"):
        check(jax, inputs(library), transform=jax.jit)
