"""Few rows on many keys by compiled loops, which read keys where they lie."""

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.walkers.numpy import at_once
from attention_xp._engine.walkers.numpy.compiled import attended, found
from attention_xp._engine.walkers.numpy.compiled_few_rows import attend_in_place
from tests import reference
from tests._compiled_loops import force
from tests._inputs import inputs, normal
from tests.engine.walkers.numpy._whole_calls import problem_of

assert attended  # numba is imported: where there is none, these tests are not collected

SHAPES = [
    ((1, 6, 1, 64), (1, 2, 300, 64), (1, 2, 300, 32)),  # a group of 3, and columns of two widths
    ((1, 22, 1, 32), (1, 11, 67, 32), (1, 11, 67, 32)),  # four heads for each job, and two for the last
    ((2, 4, 3, 32), (2, 2, 67, 32), (2, 2, 67, 32)),
    ((2, 4, 2, 32), (1, 2, 64, 32), (2, 2, 64, 32)),  # keys for all items, and values for each
    ((3, 2, 32), (1, 130, 32), (3, 130, 32)),  # no heads
    ((16, 32), (1, 32), (1, 32)),  # one key
]
OPTIONS = {"plain": {}, "soft cap": {"softcap": 0.5}, "scale": {"scale": 0.3}, "sinks": {}}


@pytest.fixture(autouse=True)
def of_every_size(monkeypatch):
    monkeypatch.setattr(found, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(at_once, "_MANY", 0)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results(dtype, shapes, name, monkeypatch):
    arrays, options = [x.astype(dtype) for x in inputs(*shapes)], OPTIONS[name]
    if name == "sinks" and len(shapes[0]) == 4:
        options = {"sinks": normal(shapes[0][1]).astype(dtype)}
    problem = problem_of(arrays, **options)
    assert at_once.are_compiled(problem)
    monkeypatch.delattr(at_once, "attend_region")  # the formula, which would give the same
    result, whole = at_once.attend(problem, Wanted(lse=True), threads=2), reference.attention(*arrays, **options)
    atol = 2e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(result.output, whole.output, atol=atol)
    np.testing.assert_allclose(result.lse, whole.lse, atol=atol * 4)


LENGTHS = {
    "some": ([67, 30, 1], {}),
    "none": ([0, 67, 0], {"sinks": normal(4).astype("float32")}),
    "of all items": ([40], {"softcap": 0.5}),
    "beyond the keys": ([90, 66, 5], {}),
    "behind an offset": ([90, 40, 66], {"key_offset": 30}),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_items_that_end_early(name, monkeypatch):
    """What lies behind the end is not read, and no mask is made."""
    (query, key, value), (lengths, options) = inputs((3, 4, 2, 32), (3, 2, 67, 32), (3, 2, 67, 32)), LENGTHS[name]
    arrays = [x.astype("float32") for x in (query, key, value)]
    ends = np.clip(np.broadcast_to(lengths, 3) - options.get("key_offset", 0), 0, 67)
    others = {name: option for name, option in options.items() if name != "key_offset"}
    expected = reference.attention(query, key, value, key_lengths=ends, **others)
    for b, n in enumerate(ends):
        for x in arrays[1:]:
            x[b, :, n:] = np.nan
    problem = problem_of(arrays, key_lengths=np.asarray(lengths), **options)
    assert at_once.are_few_without_rules(problem)
    monkeypatch.delattr(at_once, "attend_region")
    result = at_once.attend(problem, Wanted(lse=True), threads=2)
    np.testing.assert_allclose(result.output, expected.output, atol=2e-6)
    np.testing.assert_allclose(result.lse, expected.lse, atol=8e-6)


def test_keys_may_lie_anyhow():
    """Heads between keys, every second key, numbers of a key apart, and addresses that are no multiple of four bytes."""
    query, key, value = (x.astype(np.float32) for x in inputs((1, 4, 1, 32), (1, 2, 100, 32)))
    expected = reference.attention(query, key, value).output
    for lay in (_with_heads_between, _apart, _in_columns, _unaligned):
        output = flash_attention(query, lay(key), lay(value), impl="dense")
        np.testing.assert_allclose(output, expected, atol=2e-6)


def _with_heads_between(x):
    return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)


def _apart(x):
    return np.repeat(x, 2, axis=2)[:, :, ::2]


def _in_columns(x):
    return np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)


def _unaligned(x):
    memory = np.empty(x.nbytes + 1, np.uint8)[1:]
    memory[:] = x.view(np.uint8).ravel()
    return memory.view(x.dtype).reshape(x.shape)


def test_what_is_not_for_these_loops():
    arrays = [x.astype(np.float32) for x in inputs((1, 4, 2, 32), (1, 2, 100, 32))]
    assert at_once.are_compiled(problem_of(arrays))
    for options in ({"is_causal": True, "query_offset": 9}, {"bias": normal(2, 100)}, {"score_mod": lambda s, *_: s}):
        assert not at_once.are_compiled(problem_of(arrays, **options))
    narrow = [x[..., :5] for x in arrays]
    many = [np.repeat(arrays[0], 5, axis=2), *arrays[1:]]  # 20 rows for each key
    single = [arrays[0][:, :2, :1], *arrays[1:]]
    for others in (narrow, many, single):
        assert not at_once.are_compiled(problem_of(others))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_rows_that_attend_it(bad):
    query, key, value = (x.astype(np.float32) for x in inputs((1, 4, 1, 32), (1, 2, 100, 32)))
    value[0, 1, 99, 3] = bad
    output = flash_attention(query, key, value, impl="dense")
    expected = reference.attention(query, key, value).output
    np.testing.assert_allclose(output, expected, atol=2e-6)
    key[0, 0, 7, 0] = np.nan
    output = flash_attention(query, key, value, impl="dense")
    np.testing.assert_array_equal(np.isnan(output).all(axis=(0, 2, 3)), [True, True, False, False])


def test_forced_loops_reach_small_calls(monkeypatch):
    """Where tests let loops be compiled for every size, few rows are among them."""
    for name in ("FEWEST_PAIRS", "FEWEST_PACKED_ROWS", "has_vector_powers"):
        monkeypatch.setattr(found, name, getattr(found, name))  # put back afterwards
    calls = []
    monkeypatch.setattr(at_once, "attend_in_place", lambda *args: calls.append(args) or attend_in_place(*args))
    force()
    query, key = np.ones((1, 2, 4, 16), np.float32), np.ones((1, 2, 50, 16), np.float32)
    flash_attention(query, key, key)
    assert calls
