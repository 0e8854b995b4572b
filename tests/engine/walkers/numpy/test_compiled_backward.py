"""The walk backward of compiled loops: what is not finite, threads, and the order of jobs."""

import numpy as np
import pytest

from attention_xp import attention_vjp
from attention_xp._engine.tile.gradients import Known
from attention_xp._engine.walkers.numpy import backward, compiled_backward as module
from attention_xp._engine.walkers.numpy.compiled import differentiated, found
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._engine.walkers.numpy.compiled_backward import compiled_backward
from attention_xp._engine.walkers.numpy.compiled_forward import compiled_forward
from tests.engine.walkers.numpy._whole_calls import Arrays, Results, assert_close, by_formula, by_loops, problem_of
from tests.engine.walkers.numpy.test_compiled_forward import OPTIONS, excluded

assert differentiated  # numba is imported: where there is none, these tests are not collected


def walk_of(arrays, threads, **options):
    problem = problem_of(arrays, **options)
    steps = Steps(problem)
    done = compiled_forward(problem, steps, 1, lse=True)
    return compiled_backward(problem, Known(done.output, done.lse, *arrays[3:]), steps, threads)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_depend_on_no_order_of_jobs(monkeypatch, options):
    arrays = Arrays.of((2, 4, 300, 12), (2, 280, 12))
    first = walk_of(arrays, 2, **options).gradients()
    monkeypatch.setattr(module, "run_jobs", _backwards)
    for x, y in zip(first[:3], walk_of(arrays, 2, **options).gradients()[:3], strict=True):
        np.testing.assert_array_equal(x, y)


def _backwards(count, at_work, threads):
    with at_work() as do:
        for job in reversed(range(count)):
            do(job)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "query_offset": 0}], ids=str)
def test_rows_may_be_parted_among_threads(threads, options):
    """Keys whose rows are parted have sums of their own in each job."""
    arrays = Arrays.of((1, 2, 1200, 4), (1, 300, 4))
    assert any(job.part for job in walk_of(arrays, threads, **options).jobs) == (threads > 1)
    expected = by_loops(arrays.astype(np.float64), threads=1, **options)
    assert_close(by_loops(arrays, threads=threads, **options), expected)


@pytest.fixture
def walks(monkeypatch):
    """Let small calls be compiled, and note what became of each."""
    kept = []

    def noted(*args):
        kept.append(compiled_backward(*args))
        return kept[-1]

    monkeypatch.setattr(found, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(backward, "compiled_backward", noted)
    return kept


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_excluded_does_not_leak(walks, where, number):
    arrays, mask = excluded(where, number)
    clean = arrays._replace(**{n: np.where(np.isfinite(a), a, 0.0) for n, a in arrays._asdict().items()})
    with np.errstate(invalid="ignore"):
        output, vjp = attention_vjp(*arrays[:3], mask, impl="tiled")
        gradients = vjp(arrays.gradient)
    zeros = np.zeros_like(arrays.grad_lse)
    expected = by_formula(clean._replace(grad_lse=zeros), mask)
    assert_close(Results(output, expected.lse, *gradients[:3]), expected)
    assert walks == [None]


def test_rows_that_are_excluded_have_gradients_that_do_not_leak(walks):
    arrays = Arrays.of((1, 4, 120, 8), (2, 150, 6)).astype(np.float64)
    arrays.query[0, 1, 20], arrays.gradient[0, 2, 20] = np.nan, np.inf
    mask = np.ones((120, 150), bool)
    mask[20] = False
    with np.errstate(invalid="ignore"):
        gradients = attention_vjp(*arrays[:3], mask, impl="tiled")[1](arrays.gradient)
        expected = attention_vjp(*arrays[:3], mask, impl="dense")[1](arrays.gradient)
    for x, y in zip(gradients[:3], expected[:3], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
    assert all(np.isfinite(x).all() for x in gradients[1:3])
    assert len(walks) == 1


@pytest.mark.parametrize("where", ["query", "key", "value", "gradient"])
def test_what_is_attended_reaches_the_gradients(walks, where):
    arrays = Arrays.of((1, 4, 120, 8), (2, 150, 6)).astype(np.float64)
    getattr(arrays, where)[0, 1, 100, 2] = np.nan
    tiled, dense = (
        attention_vjp(*arrays[:3], is_causal=True, query_offset=30, impl=impl)[1](arrays.gradient)
        for impl in ("tiled", "dense")
    )
    for x, y in zip(tiled[:3], dense[:3], strict=True):
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
    assert len(walks) == 1


def test_a_bias_whose_gradient_is_wanted_takes_the_usual_walk(walks):
    arrays = Arrays.of((1, 4, 120, 8), (2, 150, 6))
    bias = np.zeros((120, 150), np.float32)
    assert attention_vjp(*arrays[:3], bias=bias, impl="tiled")[1](arrays.gradient).bias.shape == bias.shape
    assert walks == []
    attention_vjp(*arrays[:3], impl="tiled")[1](arrays.gradient)
    assert len(walks) == 1


def test_weights_that_add_nothing_are_nothing():
    """Far below the log-sum-exp they might be subnormal, with which products take ten times as long."""
    arrays = Arrays.of((1, 1, 64, 8), (1, 128, 8))._replace(gradient=np.ones((1, 1, 64, 8), np.float32))
    bias = np.zeros((1, 128), np.float32)
    bias[:, 64:] = -80.0
    found_, expected = by_loops(arrays, bias=bias), by_formula(arrays, bias=bias)
    assert_close(found_, expected)
    assert not found_.value[..., 64:, :].any()
    assert by_loops(arrays.astype(np.float64), bias=bias.astype(np.float64)).value[..., 64:, :].all()


LAYOUTS = {
    "heads last": lambda a: np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2),
    "columns": lambda a: np.ascontiguousarray(a.mT).mT,
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1],
    "not aligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("D", [16, 37])
def test_arrays_may_lie_in_any_order(layout, D):
    arrays = Arrays.of((2, 4, 130, D), (2, 180, D))
    given = Arrays(*map(layout, arrays[:4]), arrays.grad_lse)
    assert_close(by_loops(given), by_loops(arrays))
