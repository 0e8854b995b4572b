"""NumPy's way back: short heads together, the last jobs in pieces, and always the same sums."""

import itertools

import numpy as np
import pytest

from attention_xp import attention_vjp
from attention_xp._engine.plan.tile_sizes import backward_tile_shape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Known
from attention_xp._engine.walkers.numpy.backward import BackwardWalk
from attention_xp._engine.walkers.numpy.in_place_backward import InPlaceBackward
from attention_xp.biases import AlibiBias, RelativePositionBias
from attention_xp.masks import BlockMask, longformer_mask

SHAPE = (2, 6, 200, 8)
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (30, 10)},
    "blocks": {"mask": BlockMask(np.random.default_rng(4).random((25, 25)) < 0.3, 8)},
    "window and global keys": {"mask": longformer_mask(20, np.arange(200) % 90 == 7)},
    "softcap": {"softcap": 5.0},
    "dropout": {"is_causal": True, "dropout_rate": 0.2, "rng": 3},
    "mask of keys": {"mask": np.arange(200) % 3 > 0},
    "mask of each head": {"mask": np.random.default_rng(5).random((1, 6, 200, 200)) < 0.7},
    "bias of each head": {"bias": np.random.default_rng(6).standard_normal((1, 6, 1, 200))},
    "slopes under a window": {"bias": AlibiBias(np.linspace(0.1, 0.6, 6)), "window": (30, 10)},
    "slopes of each item": {"bias": AlibiBias(np.linspace(0.1, 0.6, 12).reshape(2, 6)), "is_causal": True},
    "table": {"bias": RelativePositionBias(np.random.default_rng(7).standard_normal((32, 6))), "softcap": 5.0},
}


def numbers(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def gradients(arrays, **options):
    *arrays, gradient = arrays
    return attention_vjp(*arrays, impl="tiled", **options)[1](gradient)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_heads_together_are_heads_one_by_one(options, kv_heads):
    kv_shape = (2, kv_heads, 200, 8)
    arrays = numbers(SHAPE, kv_shape, kv_shape, SHAPE)
    together, alone = gradients(arrays, **options), gradients(arrays, **options, tile=(64, 64))
    for x, y in zip(together, alone, strict=True):
        if y is not None:
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["slopes under a window", "slopes of each item", "table"])
def test_threads_sum_up_the_gradients_of_a_rule(name):
    """Those of a single tile, and in every call the same."""
    arrays = numbers(*[SHAPE] * 4)
    first, second = (gradients(arrays, **OPTIONS[name]) for _ in range(2))
    whole = attention_vjp(*arrays[:3], impl="dense", **OPTIONS[name])[1](arrays[3])
    for x, y, z in zip(first.bias, second.bias, whole.bias, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_allclose(x, z, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 6, 200, 8), (6, 200, 8), (200, 8), (1, 3, 1100, 8)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_any_number_of_leading_axes_and_of_pieces_gives_the_same_twice(shape, is_causal):
    arrays = numbers(*[shape] * 4)
    first, second = (gradients(arrays, is_causal=is_causal) for _ in range(2))
    alone = gradients(arrays, is_causal=is_causal, tile=(64, 64))
    for x, y, z in zip(first[:3], second[:3], alone[:3], strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_allclose(x, z, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("shape", "kv_shape"), [((3, 4, 90, 8), (1, 4, 90, 8)), ((3, 4, 90, 8), (1, 2, 90, 8)), ((5, 90, 8), (1, 90, 8))]
)
def test_batch_items_that_share_keys_add_up(shape, kv_shape, is_causal):
    query, key, value, gradient = numbers(shape, kv_shape, kv_shape, shape)
    lead = (*shape[:-3], *kv_shape[len(kv_shape) - 3 :]) if len(shape) == 4 else shape
    spread = [np.broadcast_to(a, lead) for a in (key, value)]
    shared = gradients([query, key, value, gradient], is_causal=is_causal)
    apart = gradients([query, *spread, gradient], is_causal=is_causal)
    np.testing.assert_allclose(shared.query, apart.query, rtol=1e-10, atol=1e-12)
    for x, y in ((shared.key, apart.key), (shared.value, apart.value)):
        np.testing.assert_allclose(x, np.sum(y, axis=0, keepdims=True), rtol=1e-10, atol=1e-12)


def test_rules_that_leave_out_much_are_met_in_low_tiles_of_several_heads():
    query = np.zeros((1, 8, 4096, 8), np.float32)
    for options in ({"is_causal": True, "window": (128, 0)}, {"mask": BlockMask(np.eye(32, dtype=bool), 128)}):
        problem = Problem.of(query, query, query, options.pop("mask", None), 0.0, options)
        shape = backward_tile_shape(problem, 2, alone=False)
        assert shape.heads > 1
        assert shape.rows <= 256


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("shape", [(4, 12, 512, 8), (1, 8, 2048, 8), (1, 1, 4096, 8), (3, 1, 64, 8)])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window": (40, 0)}])
def test_jobs_visit_all_rows_of_all_heads_once(threads, shape, options):
    query = np.zeros(shape, np.float32)
    problem = Problem.of(query, query, query, None, 0.0, options)
    walk = BackwardWalk(problem, Known(query, query[..., 0], query, None), (), threads)
    visited = [
        (*np.add(place.starts, (0, i)).tolist(), block)
        for places, blocks, _ in walk.jobs
        for place in places
        for i, block in itertools.product(range(place.heads), blocks)
    ]
    expected = itertools.product(range(shape[0]), range(shape[1]), walk.route.blocks())
    assert sorted(visited) == sorted(expected)


def test_short_heads_are_together_and_the_last_job_is_a_small_one():
    query = np.zeros((4, 12, 512, 64), np.float32)
    problem = Problem.of(query, query, query, None, 0.0, {"is_causal": True})
    assert backward_tile_shape(problem, 2, alone=False).heads > 1
    assert backward_tile_shape(problem, 2, alone=True).heads == 1
    jobs = BackwardWalk(problem, Known(query, query[..., 0], query, None), (), 2).jobs
    assert jobs[-1].places[0].heads < jobs[0].places[0].heads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"softcap": 3.0}])
@pytest.mark.parametrize("level", [-300.0, -30.0, -15.0, 25.0, 60.0, 300.0])
def test_a_constant_in_all_scores_changes_no_gradient(level, options, dtype):
    query, key, value, gradient = (a.astype(dtype) for a in numbers(*[(2, 3, 150, 8)] * 4))
    plain = attention_vjp(query, key, value, **options)[1](gradient)
    bias = np.full((1, 1), level, dtype)
    moved = attention_vjp(query, key, value, bias=bias, impl="tiled", tile=(64, 32), **options)[1](gradient)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(
            getattr(moved, name), getattr(plain, name), rtol=0, atol=1e-4 if dtype == "float32" else 1e-12
        )


def test_keys_that_no_tile_visits_have_no_gradient():
    query, key, value, gradient = numbers(*[(1, 2, 300, 8)] * 4)
    mask = np.zeros((300, 300), bool)
    mask[:, 100:150] = mask[40:90, 220:250] = True
    slopes = attention_vjp(query, key, value, mask=mask, impl="tiled", tile=(32, 16))[1](gradient)
    dense = attention_vjp(query, key, value, mask=mask, impl="dense")[1](gradient)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(slopes, name), getattr(dense, name), rtol=1e-10, atol=1e-12)
    assert not slopes.key[..., [*range(100), *range(150, 220), *range(250, 300)], :].any()


@pytest.mark.parametrize("is_causal", [False, True])
def test_no_product_meets_subnormal_numbers(monkeypatch, is_causal):
    """They take processors up to 30 times as long; far keys have such weights under linear biases."""
    arrays = [x.astype(np.float32) for x in numbers(*[(1, 8, 1200, 8)] * 4)]
    options = {"bias": AlibiBias(0.5 ** np.arange(1.0, 9.0)), "is_causal": is_causal}
    smallest, product = [], InPlaceBackward._product

    def met(ops, x, y, buffer):
        smallest.append(np.min(np.abs(x), where=x != 0, initial=1.0))
        return product(ops, x, y, buffer)

    monkeypatch.setattr(InPlaceBackward, "_product", met)
    found = gradients(arrays, **options)
    assert min(smallest) > np.finfo(np.float32).tiny
    expected = attention_vjp(*(x.astype(np.float64) for x in arrays[:3]), impl="dense", **options)[1](arrays[3] * 1.0)
    for x, y in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-6 * np.abs(y).max())
