"""Whole calls by compiled loops, forward and backward, against the formula in float64."""

from functools import cache

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import attended, differentiated, steps
from attention_xp.biases import AlibiBias
from tests.engine.walkers.numpy._whole_calls import Arrays, assert_close, by_formula, by_loops, problem_of, survivors

# No whole vectors, bands or lines; more rows than meet keys at once.
B, H, Hkv, Sq, Sk, D, Dv = 2, 4, 2, 210, 201, 20, 13
RATE, SEED = 0.3, 5


def numbers(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def flags(*shape):
    return np.random.default_rng(2).random(shape) < 0.7


def of_each_head():
    mask = flags(1, H, Sq, Sk)
    mask[:, 1, 50:160] = mask[:, 2] = mask[:, :, 60] = False  # strips, a head and a row that attend nothing
    return mask


def additive():
    mask = np.where(flags(Sq, Sk), numbers(Sq, Sk), -np.inf).astype(np.float32)
    mask[:, ::7] = np.finfo(np.float32).min
    mask[33] = -np.inf
    return mask


CALLS = {
    "plain": {},
    "scale": {"scale": -0.3},
    "causal": {"is_causal": True, "query_offset": 0},
    "causal with an offset": {"is_causal": True, "query_offset": 37},
    "rows before all keys": {"is_causal": True, "query_offset": -70},
    "offsets of items": {"is_causal": True, "query_offset": np.asarray([-3, 60])},
    "window": {"window": (40, 7), "query_offset": 3},
    "lengths": {"key_lengths": np.asarray([180, 77]), "query_lengths": np.asarray([210, 101])},
    "mask of each head": {"mask": of_each_head()},
    "mask of keys": {"mask": flags(B, 1, 1, Sk)},
    "mask of rows": {"mask": flags(Sq, 1)},
    "additive mask": {"mask": additive()},
    "additive mask and soft cap": {"mask": additive(), "softcap": 3.0},
    "bias": {"bias": numbers(B, H, Sq, Sk)},
    "bias of heads": {"bias": numbers(H, 1, 1), "mask": flags(B, 1, Sq, Sk)},
    "bias of rows": {"bias": numbers(H, Sq, 1), "is_causal": True, "query_offset": 0},
    "bias of keys": {"bias": numbers(B, 1, 1, Sk), "window": (40, 7), "query_offset": 0},
    "bias that lies otherwise": {"bias": numbers(Sk, H, Sq).transpose(1, 2, 0)[:, ::-1]},
    "soft cap": {"softcap": 2.0, "scale": 0.5},
    "soft cap and bias": {"softcap": 2.0, "bias": numbers(Sq, Sk), "is_causal": True, "query_offset": 0},
    "sinks": {"sinks": numbers(H), "window": (40, 0), "query_offset": 0},
}


@cache
def expected(name, factor=1.0):
    return by_formula(arrays_of(factor), **CALLS[name])


@cache
def arrays_of(factor=1.0):
    return Arrays.of((B, H, Sq, D), (Hkv, Sk, Dv), factor)


def cast(options, dtype):
    """The same with floating arrays in a dtype, and the smallest number still the smallest."""
    limits = (np.finfo(np.float32).min, np.finfo(dtype).min)
    return {n: _cast(x, dtype, *limits) if n in ("mask", "bias", "sinks") else x for n, x in options.items()}


def _cast(array, dtype, least, smallest):
    if array.dtype == bool:
        return array
    cast = array.astype(dtype, order="K")
    cast[array == least] = smallest
    return cast


both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@both_dtypes
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_the_formula(name, dtype):
    assert_close(by_loops(arrays_of().astype(dtype), **cast(CALLS[name], dtype)), expected(name))


@pytest.mark.parametrize("name", CALLS)
def test_keys_may_be_met_some_at_once(monkeypatch, name):
    monkeypatch.setattr(steps, "second_cache", lambda: 2**15)
    problem = problem_of(arrays_of(), **CALLS[name])
    assert steps.Steps(problem).at_once(problem) == 128
    assert_close(by_loops(arrays_of(), **CALLS[name]), expected(name))


@both_dtypes
@pytest.mark.parametrize("name", ["plain", "causal with an offset", "mask of each head", "sinks"])
def test_large_scores_lose_nothing_but_their_own_digits(name, dtype):
    found = by_loops(arrays_of(40.0).astype(dtype), **cast(CALLS[name], dtype))
    assert_close(found, expected(name, 40.0), factor=10.0)


@both_dtypes
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "query_offset": 5}, {"softcap": 2.0}], ids=str)
def test_dropout_takes_the_weights_that_it_takes_elsewhere(options, dtype):
    arrays = arrays_of()
    keep = survivors(arrays, RATE, SEED, query_offset=options.get("query_offset", 0))
    found = by_loops(arrays.astype(dtype), dropout_rate=RATE, rng=SEED, **options)
    assert_close(found, by_formula(arrays, keep=keep, rate=RATE, **options))


@pytest.mark.parametrize("offset", [0, 7, -4])
def test_survivors_are_the_same_to_the_last_one(offset):
    arrays = arrays_of()
    eye = np.broadcast_to(np.eye(Sk, dtype=np.float32), (B, Hkv, Sk, Sk))
    weights = by_loops(
        arrays._replace(value=eye, gradient=numbers(B, H, Sq, Sk)), dropout_rate=RATE, rng=SEED, query_offset=offset
    ).output
    np.testing.assert_array_equal(weights != 0.0, survivors(arrays, RATE, SEED, query_offset=offset))


def test_a_rule_gives_what_is_added():
    slopes = np.linspace(0.1, 0.6, H)
    distances = np.abs(np.arange(Sq)[:, None] - np.arange(Sk))
    found = by_loops(arrays_of().astype(np.float64), bias=AlibiBias(slopes), query_offset=0)
    assert_close(found, by_formula(arrays_of(), bias=-slopes[:, None, None] * distances))


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 1), (6, 2)])
@pytest.mark.parametrize(("D", "Dv"), [(1, 1), (64, 96), (33, 130)])
def test_any_widths_and_groups(heads, kv_heads, D, Dv):
    arrays = Arrays.of((1, heads, 65, D), (kv_heads, 129, Dv))
    assert_close(by_loops(arrays, is_causal=True, query_offset=64), by_formula(arrays, is_causal=True, query_offset=64))


@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 64), (47, 63), (48, 64), (49, 65), (193, 3), (384, 128)])
def test_any_lengths(rows, keys):
    arrays = Arrays.of((1, 2, rows, 8), (1, keys, 8))
    assert_close(by_loops(arrays), by_formula(arrays))


LAYOUTS = {
    "heads behind": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, 2)), 2, 1),
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1],
    "columns": lambda a: np.ascontiguousarray(a.mT).mT,
    "every other": lambda a: np.repeat(np.repeat(a, 2, axis=-1), 3, axis=-2)[..., ::3, ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "not aligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@both_dtypes
def test_arrays_are_read_as_they_lie(layout, dtype):
    arrays = Arrays.of((1, 4, 70, 16), (2, 130, 32)).astype(dtype)
    options = {"mask": flags(1, 4, 70, 130), "bias": numbers(1, 4, 70, 130).astype(dtype)}
    laid = by_loops(Arrays(*map(layout, arrays[:4]), arrays[4]), **{n: layout(a) for n, a in options.items()})
    expected = by_loops(arrays, **options)
    np.testing.assert_array_equal(laid.output, expected.output)
    assert_close(laid, expected)  # NumPy sums up output times gradient in another order


def test_batch_items_may_share_keys():
    arrays = Arrays.of((3, 4, 70, 8), (2, 90, 8))
    spread = arrays._replace(key=arrays.key[:1], value=arrays.value[:1])
    whole = [np.broadcast_to(a, (3, *a.shape[1:])) for a in spread[1:3]]
    expected = by_formula(spread._replace(key=whole[0], value=whole[1]))
    sums = (a.sum(axis=0, keepdims=True) for a in (expected.key, expected.value))
    assert_close(by_loops(spread), expected._replace(key=next(sums), value=next(sums)))


def test_loops_are_kept_on_the_disk_and_let_other_threads_run():
    for loop in (attended.attend, differentiated.differentiate):
        assert loop.targetoptions["nogil"]
        assert loop.stats.cache_path is not None
