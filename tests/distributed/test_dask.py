"""Attention on arrays of Dask, compared with one call on the whole."""

import dask
import dask.array as da
import numpy as np
import pytest

from attention_xp import attention_statistics, attention_vjp, flash_attention
from attention_xp.biases import Bias
from attention_xp.distributed import dask_attention, dask_attention_statistics, dask_attention_vjp
from attention_xp.masks import BlockMask, CausalMask, FunctionMask, Mask, WindowMask
from tests._inputs import normal
from tests.distributed._calls import CALLS, KEEP, B, H, S, inputs

QUERY = (1, 1), (3, 1), (5, 4, 7), (4, 4)  # the second chunk of heads cuts a group in two
KEY = (2,), (1, 1), (3, 6, 6, 1), (8,)
VALUE = (1, 1), (2,), (8, 8), (3, 3)


def make(array):
    return np.asarray(array)


make.xp = np


def on_dask(query, key, value):
    return da.from_array(query, QUERY), da.from_array(key, KEY), da.from_array(value, VALUE)


def close(got, expected, digits=1e-13):
    np.testing.assert_allclose(got, expected, rtol=digits, atol=digits, strict=True)


@pytest.mark.parametrize("name", CALLS)
def test_blocks_make_the_whole(name):
    *arrays, _ = inputs()
    options = CALLS[name](make, slice(None))
    expected = flash_attention(*arrays, **options, return_lse=True)
    found = dask_attention(*on_dask(*arrays), **options, return_lse=True)
    assert found[0].chunks == (*QUERY[:3], (arrays[2].shape[-1],))
    assert found[1].chunks == QUERY[:3]
    for lazy, got, whole in zip(found, dask.compute(*found, scheduler="sync"), expected, strict=True):
        assert (lazy.dtype, lazy.shape) == (whole.dtype, whole.shape)
        close(got, whole)


def leaves(gradients):
    return [x for part in gradients for x in (part if isinstance(part, tuple) else [part])]


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_those_of_the_whole(name):
    *arrays, upstream = inputs()
    options = CALLS[name](make, slice(None))
    expected = attention_vjp(*arrays, **options)[1](upstream)
    output, vjp = dask_attention_vjp(*on_dask(*arrays), **options)
    gradients = vjp(upstream)
    assert [x.chunks for x in gradients[:3]] == [QUERY, KEY, VALUE]
    found = leaves(gradients)
    for lazy, got, whole in zip(found, dask.compute(*found, scheduler="sync"), leaves(expected), strict=True):
        assert (got is None) == (whole is None)
        if whole is not None:
            assert (lazy.dtype, lazy.shape) == (whole.dtype, whole.shape)
            close(got, whole)
    assert output.name == dask_attention(*on_dask(*arrays), **options).name  # what both compute is computed once


@pytest.mark.parametrize("name", [name for name in CALLS if "dropout" not in name])
def test_statistics_are_those_of_the_whole(name):
    query, key, value, _ = inputs()
    options = {n: x for n, x in CALLS[name](make, slice(None)).items() if n not in ("dropout_rate", "rng")}
    expected = attention_statistics(query, key, **options)
    found = dask_attention_statistics(*on_dask(query, key, value)[:2], **options)
    assert [x.chunks for x in found] == [QUERY[:3]] * 3 + [(*QUERY[:2], KEY[2])]
    for lazy, got, whole in zip(found, dask.compute(*found, scheduler="sync"), expected, strict=True):
        assert (lazy.dtype, lazy.shape) == (whole.dtype, whole.shape)
        close(got, whole)


class OfRows(Mask):
    """A rule that asks for rows and columns, and for an entry of each head, which the block has some of."""

    def __init__(self, keep, offsets):
        self.keep, self.offsets = keep, offsets
        self.lead = (len(offsets),)

    def allowed(self, region):
        rows = region.look_up(self.keep) & (region.row % 3 != region.column % 5)
        return rows | (region.per_head(self.offsets) + region.head > region.floating(region.kv_idx))


class Wave(Bias):
    """A rule with numbers for each item and head, of which the library knows nothing."""

    def __init__(self, widths):
        self.widths = widths

    def values(self, region):
        return region.per_head(self.widths) * region.floating((region.q_idx + region.row - region.kv_idx) % 3)


LOOKED_UP = {
    "own mask": {"mask": OfRows(normal(S, S, seed=3) > 0, normal(H))},
    "own bias": {"bias": Wave(normal(B, H)), "is_causal": True},
    "array in a rule": {"mask": CausalMask() & KEEP},
    "blocks of heads": {
        "mask": (CausalMask() | KEEP) & ~BlockMask(np.arange(H * 16).reshape(H, 4, 4) % 5 == 0, (4, 4))
    },
    "function": {"mask": FunctionMask(lambda b, h, q, k: (k <= q) | (b + h == 3), batch=B, heads=H)},
    # It says nothing of items and heads.
    "function of anything": {"mask": FunctionMask(lambda b, h, q, k: (k <= 0) | (b + h == 4))},
    "function of given numbers": {
        "mask": FunctionMask(lambda b, h, q, k: (q + k + h + b) % 4 != 0, batch=B, heads=H),
        "item_ids": np.asarray([7, 2]),
        "head_ids": np.asarray([3, 1, 0, 9]),
    },
    "scattered keys": {"key_positions": np.random.default_rng(0).permutation(S), "query_offset": 2, "window": (4, 1)},
    "keys of items": {
        "key_positions": np.arange(B * S).reshape(B, S) % 17 - 1,
        "query_offset": np.asarray([0, 3]),
        "is_causal": True,
    },
    "offsets of items": {"query_offset": np.asarray([0, 5]), "key_offset": np.asarray([2, 0]), "is_causal": True},
    "numbers of NumPy": {
        "query_offset": np.int64(2),
        "scale": np.float64(0.4),
        "window": (4, 2),
        "key_lengths": np.int32(9),
    },
    "ids": {"head_ids": np.asarray([3, 1, 0, 9]), "dropout_rate": 0.3, "rng": 5, "scale": np.asarray(0.3)},
}


@pytest.mark.parametrize("name", LOOKED_UP)
def test_what_rules_look_up_is_that_of_the_whole(name):
    (*arrays, _), options = inputs(), LOOKED_UP[name]
    lazily = {n: da.from_array(x, chunks=3) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    for given in (options, lazily):
        close(dask_attention(*on_dask(*arrays), **given).compute(scheduler="sync"), flash_attention(*arrays, **options))


@pytest.mark.parametrize("shapes", [[(7, 4)] * 3, [(3, 7, 4)] * 3, [(1, 2, 7, 4), (3, 1, 5, 4), (1, 1, 5, 2)], [(2, 0, 4), (2, 5, 4), (2, 5, 4)], [(2, 5, 4), (2, 0, 4), (2, 0, 4)], [(2, 3, 2, 9, 4)] * 3])  # fmt: skip
def test_every_number_of_axes(shapes):
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    options = {"mask": normal(*(1,) * len(shapes[0]), arrays[0].shape[-2], arrays[1].shape[-2], seed=4) > -1}
    lazy = [da.from_array(x, chunks=2) for x in arrays]
    close(dask_attention(*lazy, **options).compute(scheduler="sync"), flash_attention(*arrays, **options))
    upstream = normal(*flash_attention(*arrays).shape, seed=9)
    expected = attention_vjp(*arrays)[1](upstream)[:3]
    for got, whole in zip(dask.compute(*dask_attention_vjp(*lazy)[1](upstream)[:3]), expected, strict=True):
        close(got, whole)


def test_half_precision_is_rounded_once():
    arrays = [x.astype(np.float16) for x in inputs()]
    lazy = on_dask(*arrays[:3])
    wide = flash_attention(*[x.astype(np.float32) for x in arrays[:3]])
    close(dask_attention(*lazy).compute(), wide.astype(np.float16), digits=1e-3)
    expected = attention_vjp(*[x.astype(np.float64) for x in arrays[:3]])[1](arrays[3].astype(np.float64))
    for got, whole in zip(dask_attention_vjp(*lazy)[1](arrays[3])[:3], expected[:3], strict=True):
        close(got.compute(), whole.astype(np.float16), digits=2e-3)


def tasks(array, prefix):
    return sum(isinstance(key, tuple) and key[0].startswith(f"attention-{prefix}-") for key in array.dask)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, 64),
        ({"is_causal": True}, 36),
        ({"window": (4, 0)}, 15),
        ({"mask": WindowMask(0, 0)}, 8),
        ({"key_lengths": 9}, 24),
        ({"key_lengths": np.asarray([9])}, 24),
        ({"key_lengths": da.asarray([9])}, 64),
        ({"is_causal": True, "query_offset": 4}, 43),
        ({"is_causal": True, "query_offset": np.asarray([4])}, 64),
    ],
    ids=str,
)
def test_excluded_blocks_are_not_in_the_graph(options, blocks):
    x = da.ones((1, 2, 32, 4), chunks=(1, 2, 4, 4))
    assert tasks(dask_attention(x, x, x, **options), "block") == blocks


def test_tasks_grow_with_the_length_under_a_window():
    counts = []
    for length in (1 << 12, 1 << 14, 1 << 16):
        x = da.zeros((length, 2), chunks=(256, 2))
        counts.append(len(dask_attention(x, x, x, window=(300, 0)).dask))
    assert counts[1] / counts[0] == pytest.approx(4, rel=0.1)
    assert counts[2] / counts[1] == pytest.approx(4, rel=0.03)


def test_many_parts_are_merged_in_a_tree():
    x = da.from_array(normal(64, 4), chunks=(4, 4))
    expected = flash_attention(*[x.compute()] * 3)
    for split_every, merges in ((2, 15), (4, 5), (16, 1)):
        output = dask_attention(x[:4], x, x, split_every=split_every)
        assert tasks(output, "merge") == merges
        close(output.compute(scheduler="sync"), expected[:4])


def test_a_million_keys_are_planned_at_once():
    x = da.zeros((8, 1 << 20, 64), chunks=(8, 1 << 14, 64), dtype=np.float32)
    bias = da.zeros((1 << 20, 1 << 20), chunks=1 << 14)
    output = dask_attention(x, x, x, bias > 0, bias=bias, is_causal=True, key_lengths=da.full(8, 1 << 19))
    assert (output.shape, output.chunks, output.dtype) == (x.shape, x.chunks, x.dtype)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers(scheduler):
    *arrays, _ = inputs()
    options = CALLS["all"](make, slice(None))
    options["score_mod"] = lambda score, b, h, q, k: score * 0.5 + h  # cannot be imported by another process
    found = dask_attention(*on_dask(*arrays), **options).compute(scheduler=scheduler, num_workers=2)
    close(found, flash_attention(*arrays, **options))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: dask_attention([1.0], x, x), TypeError, "query must be an array of dask"),
        (lambda x: dask_attention(x, x, x[:, :, :3]), ValueError, "value has length 3"),
        (lambda x: dask_attention(x, x[:, :, :, :3], x), ValueError, "width"),
        (lambda x: dask_attention(x, x.astype(np.float32), x), TypeError, "dtype"),
        (lambda x: dask_attention(x, x, x, np.ones((3, 3), bool)), ValueError, "mask does not broadcast"),
        (lambda x: dask_attention(x, x, x, mask=3), TypeError, "mask must be"),
        (lambda x: dask_attention(x, x, x, sinks=np.ones(3)), ValueError, "sinks must hold"),
        (lambda x: dask_attention(x, x, x, dropout_rate=0.5), ValueError, "rng must be an int seed"),
        (lambda x: dask_attention(x, x, x, split_every=1), ValueError, "split_every"),
        (lambda x: dask_attention(x, x, x, return_lse=1), TypeError, "return_lse"),
        (lambda x: dask_attention(x, x, x, is_casual=True), TypeError, "is_causal"),
        (lambda x: dask_attention(x[..., :4, :], x, x, is_causal=True), ValueError, "query_offset is required"),
        (lambda x: dask_attention(x[x[:, 0, 0, 0] > 0], x, x), ValueError, "compute_chunk_sizes"),
        (lambda x: dask_attention(x, x, x, impl="fused"), ValueError, "fused"),
        (lambda x: dask_attention_vjp(x, x, x)[1](x[..., :3]), ValueError, "grad_output must have the shape"),
        (lambda x: dask_attention_vjp(x, x, x, score_mod=lambda s, b, h, q, k: s), ValueError, "derivative"),
        (lambda x: dask_attention_statistics(x, x, rng=3), ValueError, "rng cannot be given"),
        (lambda x: flash_attention(x, x, x), TypeError, "dask_attention"),
        (lambda x: attention_vjp(x.compute(), x.compute(), x.compute(), x > 0), TypeError, "mask is a dask array.*dask_attention"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_computed(call, error, words):
    x = da.ones((1, 2, 8, 4), chunks=(1, 2, 4, 4))
    with pytest.raises(error, match=words):
        call(x)
