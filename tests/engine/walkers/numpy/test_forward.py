"""NumPy's way forward: rows of a group in one product, and results that do not hang on which job comes first."""

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.forward import ForwardWorker
from attention_xp._engine.walkers.numpy.forward_walk import ForwardWalk
from attention_xp.masks import BlockMask, GlobalMask, SegmentMask, StridedMask, WindowMask, longformer_mask


def numbers(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize(
    "mask",
    [
        SegmentMask(np.repeat([0, 1], 32)),
        BlockMask(np.random.default_rng(1).random((4, 7)) < 0.5, 20),
        GlobalMask(np.arange(63) == 5),
    ],
)
def test_a_rule_may_part_the_rows_of_a_group_that_share_one_product(mask):
    arrays = numbers((1, 6, 63, 8), (1, 2, 128, 8), (1, 2, 128, 8))
    tiled, dense = (
        flash_attention(*arrays, mask, query_offset=0, return_lse=True, impl=impl) for impl in ("tiled", "dense")
    )
    for x, y in zip(tiled, dense, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_what_one_job_finds_changes_no_other():
    query, key, value = numbers(*[(1, 1, 2048, 8)] * 3)
    key[..., 1501, :] *= 1000.0  # that no sample sees, nor the rows before
    problem = Problem.of(query, key, value, None, 0.0, {"is_causal": True, "impl": "tiled"})

    def output(order):
        walk = ForwardWalk(problem, 1, lse=True)
        with ForwardWorker.at_work(walk) as attend:
            for job in order(range(len(walk.jobs))):
                attend(job)
        assert walk.examined
        return walk.output

    np.testing.assert_array_equal(output(list), output(reversed))


BANDS = {
    "window": {"window": (40, 7)},
    "causal": {"is_causal": True, "window": (33, 33)},
    "sinks": {"window": (40, 0), "sinks": np.linspace(-1.0, 2.0, 4)},
    "soft cap": {"window": (40, 0), "softcap": 2.0},
    "offset": {"window": (40, 7), "query_offset": 60},
    "negative offset": {"window": (40, 37), "query_offset": -20},
    "lengths": {"window": (40, 7), "key_lengths": 380, "query_lengths": 290},
    "global": {"mask": longformer_mask(30, np.arange(400) < 5)},
    "stride": {"mask": WindowMask(60, 60) & StridedMask(3)},
}


def both(arrays, mask=None, **options):
    """The call in tiles, which are to be bands, and by the formula."""
    problem = Problem.of(*arrays, mask, 0.0, {**options, "impl": "tiled"})
    walk = ForwardWalk(problem, 2, lse=True)
    assert any(tile.steps > 1 for place, rows in walk.jobs for tile in walk.route.tiles(place, rows))
    return (flash_attention(*arrays, mask, return_lse=True, impl=impl, **options) for impl in ("tiled", "dense"))


@pytest.mark.parametrize("factor", [1.0, 100.0])  # the sums need no shift, or one that rides in the query
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("options", BANDS.values(), ids=BANDS)
def test_bands_have_the_results_of_the_formula(options, kv_heads, factor):
    query, *others = numbers((2, 4, 300, 8), (2, kv_heads, 400, 8), (2, kv_heads, 400, 6))
    for x, y in zip(*both([query * factor, *others], **{"query_offset": 0} | options), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", BANDS.values(), ids=BANDS)
def test_what_is_not_finite_reaches_the_rows_of_a_band_that_attend_it(options):
    query, key, value = numbers((1, 4, 300, 8), (1, 2, 400, 8), (1, 2, 400, 6))
    key[..., 120, 3], key[:, 0, 133, :], value[..., 200, 1], value[..., 205, 1] = np.nan, np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        tiled, dense = both([query, key, value], **{"query_offset": 0} | options)
    for x, y in zip(tiled, dense, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)
    assert np.isnan(tiled[0]).any()
    assert np.isfinite(tiled[0]).any()


def test_rows_of_a_band_see_much_elsewhere():
    """More than a tile has: one long stretch, and many that are gathered for few rows."""
    mask = longformer_mask(64, np.arange(1500) < 600)
    for x, y in zip(*both(numbers(*[(1, 8, 1500, 4)] * 3), mask), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)
    scattered = np.arange(20000) % 260 < 160
    scattered[9800:10400] = False  # around the window
    mask = WindowMask(64, 64) | GlobalMask(scattered)
    for x, y in zip(*both(numbers((1, 1, 64, 8), *[(1, 1, 20000, 8)] * 2), mask, query_offset=10000), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "arrays",
    [
        [np.moveaxis(x, 1, 2) for x in numbers(*[(2, 300, 4, 8)] * 3)],
        [x[..., ::-1, :] for x in numbers(*[(2, 4, 300, 8)] * 3)],
        [x[..., ::2] for x in numbers(*[(2, 4, 300, 16)] * 3)],
        [x[:, 0] for x in numbers(*[(9, 4, 300, 8)] * 3)],
        [x[0, 0] for x in numbers(*[(1, 4, 900, 8)] * 3)],
    ],
    ids=["heads behind", "backwards", "every other", "without heads", "two axes"],
)
def test_a_band_reads_arrays_as_they_lie(arrays):
    for x, y in zip(*both(arrays, window=(40, 7)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


def test_each_batch_item_has_bands_of_its_own_offset():
    arrays = numbers((3, 4, 300, 8), (3, 4, 500, 8), (3, 4, 500, 8))
    for x, y in zip(*both(arrays, window=(40, 7), query_offset=np.asarray([0, 170, 33])), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_band_computes_in_the_dtype_of_the_problem(dtype):
    arrays = [x.astype(dtype) for x in numbers(*[(1, 4, 300, 8)] * 3)]
    (output, lse), (expected, expected_lse) = both(arrays, window=(40, 7))
    assert (output.dtype, lse.dtype) == (dtype, np.float32)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-3 if dtype is np.float16 else 1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["key_lengths", "query_lengths"])
def test_without_heads_each_batch_item_has_its_own_length(name):
    """Items are stacked like heads only where they are masked alike."""
    arrays, lengths = numbers(*[(12, 300, 8)] * 4), np.arange(12) * 25 + 1
    results = [attention_vjp(*arrays[:3], impl=impl, **{name: lengths}) for impl in ("tiled", "dense")]
    outputs, gradients = zip(*((output, vjp(arrays[3])[:3]) for output, vjp in results), strict=True)
    np.testing.assert_allclose(*outputs, rtol=1e-10, atol=1e-12)
    for x, y in zip(*gradients, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)
