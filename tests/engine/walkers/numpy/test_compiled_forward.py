"""The walk forward of compiled loops: what is not finite, threads, and the order of jobs."""

from functools import partial

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.walkers.numpy import compiled_forward as module, forward
from attention_xp._engine.walkers.numpy.compiled import attended, found
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._engine.walkers.numpy.compiled_forward import compiled_forward
from tests.engine.walkers.numpy._whole_calls import Arrays, by_formula, problem_of

assert attended  # numba is imported: where there is none, these tests are not collected
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": 20},
    "window": {"window": (30, 10), "query_offset": 0, "softcap": 2.0},
    "mask and dropout": {
        "mask": np.random.default_rng(0).random((1, 4, 300, 280)) < 0.5,
        "dropout_rate": 0.3,
        "rng": 1,
    },
}


def walk_of(arrays, threads, **options):
    problem = problem_of(arrays, **options)
    return compiled_forward(problem, Steps(problem), threads, lse=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_results_depend_on_no_number_of_threads_and_on_no_order_of_jobs(monkeypatch, options):
    """Where rules leave out pairs, sums have the order of the tiles; these are those of all blocks of so many rows."""
    arrays, options = Arrays.of((2, 4, 300, 12), (2, 280, 12)), {**options, "tile": (128, 128)}
    first = walk_of(arrays, 1, **options)
    walks = [walk_of(arrays, threads, **options) for threads in (2, 7)]
    monkeypatch.setattr(module, "run_jobs", _backwards)
    for walk in (*walks, walk_of(arrays, 2, **options)):
        np.testing.assert_array_equal(walk.output, first.output)
        np.testing.assert_array_equal(walk.lse, first.lse)


def test_where_nothing_is_left_out_blocks_of_any_height_have_the_same_results():
    arrays = Arrays.of((2, 4, 300, 12), (2, 280, 12))
    first, *others = (walk_of(arrays, threads) for threads in (1, 2, 7))
    assert len({walk.shape.rows for walk in (first, *others)}) > 1
    for walk in others:
        np.testing.assert_array_equal(walk.output, first.output)


def _backwards(count, at_work, threads):
    with at_work() as do:
        for job in reversed(range(count)):
            do(job)


@pytest.fixture
def walks(monkeypatch):
    """Let small calls be compiled, and note what became of each."""
    kept = []

    def noted(*args, **options):
        kept.append(compiled_forward(*args, **options))
        return kept[-1]

    monkeypatch.setattr(found, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(forward, "compiled_forward", noted)
    return kept


def excluded(where, number):
    """A call in which a number that is not finite stands in a key, or a value, that all rows exclude."""
    arrays = Arrays.of((1, 4, 120, 8), (2, 150, 6)).astype(np.float64)
    getattr(arrays, where)[0, 1, 70, 3] = number
    mask = np.random.default_rng(1).random((120, 150)) < 0.7
    mask[:, 70] = False
    return arrays, mask


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_excluded_does_not_leak(walks, where, number):
    arrays, mask = excluded(where, number)
    call = partial(flash_attention, return_lse=True, impl="tiled")
    clean = [np.where(np.isfinite(a), a, 0.0) for a in arrays[:3]]
    with np.errstate(invalid="ignore"):
        output, lse = call(*arrays[:3], mask)
    expected, expected_lse = call(*clean, mask)
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)
    # A weight of 0 times the value is NaN, so that the usual walk takes over; scores are replaced.
    assert [walk is None for walk in walks] == [where == "value", False]


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "query_offset": 30}], ids=str)
def test_what_is_attended_reaches_the_rows_that_attend_it(walks, where, number, options):
    arrays = Arrays.of((1, 4, 120, 8), (2, 150, 6)).astype(np.float64)
    getattr(arrays, where)[0, 1, 100, 2] = number
    with np.errstate(invalid="ignore"):
        tiled, dense = (flash_attention(*arrays[:3], impl=impl, **options) for impl in ("tiled", "dense"))
    np.testing.assert_allclose(tiled, dense, rtol=1e-12, atol=1e-13)
    assert not np.isfinite(tiled).all()
    assert np.isfinite(tiled).any()
    assert len(walks) == 1


def test_a_bias_of_infinities_is_what_it_is_elsewhere(walks):
    arrays = Arrays.of((1, 2, 100, 8), (2, 150, 6)).astype(np.float64)
    bias = np.zeros((100, 150))
    bias[3, 5], bias[4, 5], bias[5], bias[6, 7] = np.inf, -np.inf, -np.inf, np.nan
    with np.errstate(invalid="ignore"):
        tiled, dense = (
            flash_attention(*arrays[:3], bias=bias, return_lse=True, impl=impl) for impl in ("tiled", "dense")
        )
    for x, y in zip(tiled, dense, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)
    assert len(walks) == 1


def test_heads_of_a_job_each_have_their_own_keys():
    arrays = Arrays.of((1, 12, 130, 8), (12, 90, 6))
    walk = walk_of(arrays, 1, tile=(64, 64))
    assert walk.shape.heads > 1
    assert len(walk.route.blocks()) > 1
    np.testing.assert_allclose(walk.output, by_formula(arrays).output, rtol=0, atol=1e-5)


def test_results_without_a_log_sum_exp_are_the_same():
    arrays = Arrays.of((1, 2, 70, 8), (2, 90, 8))
    problem = problem_of(arrays)
    walk = compiled_forward(problem, Steps(problem), 1, lse=False)
    assert walk.lse is None
    np.testing.assert_array_equal(walk.output, walk_of(arrays, 1).output)


def test_what_mask_and_bias_both_lower_counts_less(walks):
    query, key, value = (np.random.default_rng(2).standard_normal((1, 2, 70, 8)).astype(np.float32) for _ in range(3))
    low = np.finfo(np.float32).min
    bias = np.where(np.arange(70) % 2 == 0, low, np.float32(0.0))
    arrays = query, key, value, np.full((1, 1), low, np.float32)
    tiled = flash_attention(*arrays, bias=bias[None], impl="tiled")
    assert walks
    np.testing.assert_allclose(tiled[..., 0, :], value[..., 1::2, :].mean(axis=-2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("power", "counts"), [(-115.0, True), (-117.0, False)])
def test_tiny_weights_count_as_nothing(power, counts):
    """Times a value, they may be subnormal numbers, with which products take many times as long."""
    query, key, value = (np.zeros((1, 1, 70, 1), np.float32) for _ in range(3))
    query[...], key[..., 1:, :], value[..., 1, 0] = 1.0, power * np.log(2.0), 2.0**110
    output = walk_of((query, key, value), 1, scale=1.0).output
    expected = 2.0 ** (power + 110.0) if counts else 0.0
    np.testing.assert_allclose(output, np.full_like(output, expected), rtol=1e-4)
