"""How often JAX compiles where a call differs from the one before in numbers alone, or in nothing."""

import functools
import gc
import importlib
import weakref

import numpy as np
import pytest

import attention_xp as ax
from attention_xp.masks import CausalMask, FunctionMask, LengthMask, PrefixMask
from tests._backends import to_numpy
from tests._compiled import compiled
from tests._inputs import normal

pytestmark = pytest.mark.backends("jax")


@pytest.fixture
def count():
    """Tell how many programs were compiled while a function ran for each of some numbers."""

    def compilations(call, numbers):
        compiled.listen()  # and forget nothing in the middle of a test
        jax = importlib.import_module("jax")
        before = compiled.count
        for number in numbers:
            jax.block_until_ready(call(number))
        return compiled.count - before

    return compilations


def numbers(i):
    """All options that may be numbers, each another one at each time."""
    return {
        "scale": 0.1 * i, "softcap": 1.0 + i, "query_offset": i, "is_causal": True, "query_lengths": 4 + i,
        "key_lengths": 5 + i, "mask": PrefixMask(1 + i) | LengthMask(2 + i) | CausalMask(), "dropout_rate": 0.25, "rng": i,
    }  # fmt: skip


@pytest.fixture
def qkv(make):
    return tuple(make(normal(1, 2, 9, 4, seed=i)) for i in range(3))


def slopes(q, k, v, **options):
    """Forward and backward, by the transformation of JAX."""
    return importlib.import_module("jax").grad(
        lambda *x: (ax.flash_attention(*x, tile=(4, 4), **options) ** 2).sum(), argnums=(0, 1, 2)
    )(q, k, v)


def test_numbers_are_operands_forward_and_backward(count, qkv):
    def call(i, impl="tiled"):
        return slopes(*qkv, impl=impl, **numbers(i))

    call(0)
    assert count(call, range(1, 4)) == 0
    for found, expected in zip(call(3), call(3, "dense"), strict=True):
        np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-4, atol=1e-5)


def test_fifty_steps_of_decoding(count, make):
    query, (key, value) = make(normal(1, 2, 1, 4)), (make(normal(1, 2, 64, 4, seed=i)) for i in (1, 2))

    def step(i):
        return ax.flash_attention(query, key, value, is_causal=True, query_offset=i, key_lengths=i + 1, impl="tiled")

    ax.dropout(query, 0.0)  # the first question about a library compiles something, too
    assert count(step, range(50)) <= 2
    expected = ax.flash_attention(query, key[..., :8, :], value[..., :8, :], impl="dense")
    np.testing.assert_allclose(to_numpy(step(7)), to_numpy(expected), rtol=1e-5, atol=1e-6)


def test_a_thousand_seeds(count, qkv):
    draws = []

    def call(seed):
        draws.append(ax.flash_attention(*qkv, None, 0.5, rng=seed, query_offset=seed, impl="tiled"))
        return draws[-1]

    assert count(call, range(1000)) <= 1
    for seed in (0, 999):
        expected = ax.flash_attention(*qkv, None, 0.5, rng=seed, query_offset=seed, impl="dense")
        np.testing.assert_allclose(to_numpy(draws[seed]), to_numpy(expected), rtol=1e-5, atol=1e-6)


def test_statistics_and_linear_attention(count, qkv):
    def call(i):
        options = {name: option for name, option in numbers(i).items() if name not in ("rng", "dropout_rate")}
        mask = FunctionMask(lambda b, h, q_idx, kv_idx: kv_idx != 3) & options.pop("mask")
        found = ax.attention_statistics(*qkv[:2], mask, tile=(4, 4), impl="tiled", **options)
        return *found, ax.linear.linear_attention(*qkv, scale=0.1 * i, chunk_size=4)

    call(0)
    assert count(call, range(1, 4)) == 0


def test_functions_are_compiled_once_and_follow_what_they_captured(count, make, qkv):
    held = {"factor": make(np.asarray([2.0, 0.5])), "key": 3}

    def score_mod(score, b, h, q_idx, kv_idx):
        return score * held["factor"][h]

    def mask_mod(b, h, q_idx, kv_idx):
        return kv_idx != held["key"]

    def call(i, impl="tiled"):
        # A function that is made anew is as good as the one before it; numbers and arrays are not compiled into it.
        mask = FunctionMask(mask_mod) | FunctionMask(lambda b, h, q_idx, kv_idx: q_idx > kv_idx) | PrefixMask(i)
        return slopes(*qkv, mask=mask, score_mod=score_mod, query_offset=i, impl=impl)

    call(0)
    assert count(call, range(1, 3)) == 0
    held["factor"] = make(np.asarray([1.5, 3.0]))
    assert count(call, [2]) == 0
    held["key"] = 5
    assert count(call, [2]) > 0
    for found, expected in zip(call(2), call(2, "dense"), strict=True):
        np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-4, atol=1e-5)


def test_functions_with_derivatives_of_their_own(count, qkv):
    """What they compute is alike, what they are differentiated to is not."""
    jax = importlib.import_module("jax")

    def with_slope(slope):
        @jax.custom_jvp
        def twice(x):
            return 2.0 * x

        twice.defjvp(lambda primals, tangents: (twice(*primals), slope * tangents[0]))
        return lambda score, b, h, q_idx, kv_idx: twice(score)

    def call(score_mod, impl="tiled"):
        return slopes(*qkv, score_mod=score_mod, impl=impl)

    one, other = with_slope(1.0), with_slope(5.0)
    call(one)
    assert count(call, [one, one]) == 0
    for score_mod in (one, other):
        for found, expected in zip(call(score_mod), call(score_mod, "dense"), strict=True):
            np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_of_a_function(qkv, make):
    class Rule:
        def __init__(self, table):
            self.table = table

        def __call__(self, b, h, q_idx, kv_idx):
            return self.table[kv_idx] <= self.table[q_idx]

    rule = Rule(make(normal(9)))
    gone = weakref.ref(rule), weakref.ref(rule.table)
    ax.flash_attention(*qkv, FunctionMask(rule), impl="tiled", tile=(4, 4))
    del rule
    gc.collect()
    assert [name() for name in gone] == [None, None]


def test_what_runs_in_python_is_never_that_of_an_earlier_call(count, qkv):
    jax, held = importlib.import_module("jax"), {"factor": np.float32(1.0)}

    def times(score, factor):
        return np.asarray(score) * factor

    def score_mod(score, b, h, q_idx, kv_idx):
        factor = held["factor"]
        call = functools.partial(times, factor=factor) if held["is_fresh"] else twice
        return jax.pure_callback(call, jax.ShapeDtypeStruct(score.shape, score.dtype), score, vmap_method="sequential")

    def twice(score):
        return times(score, np.float32(2.0))

    def call(_, impl="tiled"):
        return ax.flash_attention(*qkv, score_mod=score_mod, impl=impl)

    held["is_fresh"] = False
    call(0)
    assert count(call, range(3)) == 0
    held["is_fresh"] = True
    for factor in (1.0, 0.5):
        held["factor"] = np.float32(factor)
        np.testing.assert_allclose(to_numpy(call(0)), to_numpy(call(0, "dense")), rtol=1e-4, atol=1e-5)
