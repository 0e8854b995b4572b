"""Blocks of a whole, computed for all ranks in one process, and merged."""

import numpy as np
import pytest

from attention_xp import attention_gradients, flash_attention, merge_attention
from attention_xp.distributed import shard_positions, shard_sequence, unshard_sequence
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._layouts import cut, stretches
from tests._backends import to_numpy
from tests.distributed._calls import CALLS, inputs

layouts = pytest.mark.parametrize("layout", ["zigzag", "contiguous"])


@pytest.fixture
def make(library):
    """Make arrays of the widest dtype of the library, and of integers as they are."""

    def make(array):
        array = np.asarray(array)
        return library.array(array, library.dtypes()[-1]) if array.dtype.kind == "f" else library.array(array)

    make.xp = library.namespace()
    return make


@layouts
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", CALLS)
def test_blocks_make_the_whole(library, make, layout, n, name):
    query, key, value, upstream = (make(x) for x in inputs())
    S = query.shape[-2]
    whole = CALLS[name](make, slice(None))
    output, lse = flash_attention(query, key, value, **whole, return_lse=True)
    expected = attention_gradients(query, key, value, output, lse, upstream, **whole)
    found = {what: [[None] * n for _ in range(n)] for what in ("output", "lse", "query")}
    of_keys = [np.zeros(x.shape) for x in (key, value)]
    shards = [shard_sequence(x, n, layout=layout) for x in (query, output, upstream)]
    lses = shard_sequence(lse, n, layout=layout, axis=-1)
    outputs, of_queries, blocks = [], [], 0
    for rank in range(n):
        own = shard_positions(n, rank, S, layout)
        options = CALLS[name](make, own)
        call = Call(options.pop("mask", None), options.pop("dropout_rate", 0.0), options, Sq=S, Sk=S)
        of_rank = []
        for rows in Rows.of(stretches(n, rank, S, layout)):
            parts, of_query = [], 0.0
            for keys in [rows.whole, *(k for r in range(n) for k in stretches(n, r, S, layout) if k != rows.whole)]:
                is_own = keys is rows.whole
                if not is_own and not call.any_allowed(rows, keys):
                    continue
                blocks += 1
                mask, given = call.block(rows, keys, with_sinks=is_own)
                q, out, up = (cut(x[rank], rows.shard, -2) for x in shards)
                kv = [cut(x, keys, -2) for x in (key, value)]
                parts.append(flash_attention(q, *kv, mask, **given, return_lse=True))
                slopes = attention_gradients(q, *kv, out, cut(lses[rank], rows.shard, -1), up, mask, **given)
                of_query = of_query + to_numpy(slopes.query)
                for total, slope in zip(of_keys, slopes[1:3], strict=True):
                    total[..., slice(*keys.bounds), :] += to_numpy(slope)
            of_rank.append((merge_attention(*zip(*parts, strict=True))[0], of_query))
        outputs.append(np.concatenate([to_numpy(out) for out, _ in of_rank], axis=-2))
        of_queries.append(np.concatenate([slope for _, slope in of_rank], axis=-2))
    digits = {"rtol": 1e-13, "atol": 1e-13} if library.dtypes()[-1] == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    found = [unshard_sequence(x, layout=layout) for x in (outputs, of_queries)]
    for one, other in zip((*found, *of_keys), (output, *expected[:3]), strict=True):
        np.testing.assert_allclose(one, to_numpy(other), **digits)
    if name == "causal":
        assert blocks == (n * (2 * n + 1) if layout == "zigzag" else n * (n + 1) // 2)


@layouts
def test_zigzag_gives_every_rank_the_same_work_under_a_causal_mask(layout):
    n, S = 4, 16
    call = Call(None, 0.0, {"is_causal": True}, Sq=S, Sk=S)
    work = [
        sum(
            call.any_allowed(rows, keys)
            for rows in Rows.of(stretches(n, rank, S, layout))
            for r in range(n)
            for keys in stretches(n, r, S, layout)
        )
        for rank in range(n)
    ]
    assert work == ([2 * n + 1] * n if layout == "zigzag" else [1, 2, 3, 4])


def test_what_ranks_could_not_agree_on_is_refused():
    with pytest.raises(ValueError, match="rng must be an int seed"):
        Call(None, 0.1, {}, Sq=4, Sk=4)
    with pytest.raises(ValueError, match="rng must be an int seed"):
        Call(None, 0.1, {"rng": np.random.default_rng(0)}, Sq=4, Sk=4)
    for options in ({"is_causal": True}, {"window": 3}):
        with pytest.raises(ValueError, match="query_offset is required"):
            Call(None, 0.0, options, Sq=4, Sk=8)


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_shards_come_together_again(library, layout):
    x = library.array(np.arange(48.0).reshape(2, 12, 2), library.dtypes()[0])
    shards = shard_sequence(x, 3, layout=layout)
    assert [shard.shape for shard in shards] == [(2, 4, 2)] * 3
    np.testing.assert_array_equal(to_numpy(unshard_sequence(shards, layout=layout)), to_numpy(x))
    for rank, shard in enumerate(shards):
        np.testing.assert_array_equal(to_numpy(shard), to_numpy(x)[:, shard_positions(3, rank, 12, layout)])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: shard_sequence(np.zeros((10, 2)), 4, layout="zigzag"), "not divisible into 8 equal stretches"),
        (lambda: shard_sequence(np.zeros((10, 2)), 3, layout="contiguous"), "not divisible into 3"),
        (lambda: shard_sequence(np.zeros((8, 2)), 2, layout="ring"), "layout must be one of"),
        (lambda: unshard_sequence([], layout="zigzag"), "shards must hold"),
        (lambda: unshard_sequence([np.zeros((4, 1)), np.zeros((2, 1))], layout="contiguous"), "equal lengths"),
        (lambda: shard_positions(2, 2, 8, "zigzag"), "rank must satisfy"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
