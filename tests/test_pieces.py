"""Pieces of a whole: attention cut along batch items, heads, rows and keys, merged again, forward and backward."""

import itertools
import math

import numpy as np
import pytest

from attention_xp import attention_gradients, attention_vjp, flash_attention, merge_attention, varlen_attention
from attention_xp.biases import AlibiBias, RelativePositionBias
from attention_xp.masks import (
    BlockMask,
    CausalMask,
    FunctionMask,
    GlobalMask,
    LengthMask,
    PrefixMask,
    SegmentMask,
    StridedMask,
    WindowMask,
)
from tests._autodiff import gradients
from tests._backends import to_numpy
from tests._inputs import normal
from tests._quick import some_rare
from tests.score_mods import bent, with_derivative

SHAPES = (2, 4, 6, 4), (2, 2, 8, 4), (2, 2, 8, 3)
OFFSET = 2  # of the first row
HALVES = [slice(0, 1), slice(1, 2)], [slice(0, 2), slice(2, 4)], [slice(0, 3), slice(3, 6)], [slice(0, 4), slice(4, 8)]
WHOLE = tuple(slice(0, n) for n in (2, 4, 6, 8))
SEGMENTS, IS_GLOBAL = np.repeat(np.arange(3), 3), np.arange(9) % 5 == 1
LAYOUT = normal(3, 4) > -0.5
KEEP, BIAS, LENGTHS = normal(2, 1, 6, 8, seed=5) > -0.8, normal(2, 4, 6, 8, seed=6), np.asarray([7, 5])


def diagonals(b, h, q_idx, kv_idx):
    return (q_idx + kv_idx + b + h) % 3 != 0


# What is one's own of a piece, by its slices of batch items, heads, rows and keys.
CASES = {
    "nothing": lambda make, b, h, i, j: {},
    "causal": lambda make, b, h, i, j: {"is_causal": True},
    "window": lambda make, b, h, i, j: {"window": (3, 1)},
    "prefix": lambda make, b, h, i, j: {"mask": CausalMask() | PrefixMask(make(np.asarray([4, 1, 3])[b]))},
    "segments": lambda make, b, h, i, j: {"mask": SegmentMask(make(SEGMENTS)) | WindowMask(1, 1)},
    "global": lambda make, b, h, i, j: {"mask": GlobalMask(make(IS_GLOBAL)) & ~StridedMask(3)},
    "blocks": lambda make, b, h, i, j: {"mask": BlockMask(make(LAYOUT), (4, 2))},
    "lengths": lambda make, b, h, i, j: {
        "mask": LengthMask(make(LENGTHS[b])),
        "key_lengths": 6,
        "query_lengths": make(np.clip(np.asarray([5, 2])[b] - i.start, 0, None)),
    },
    "function": lambda make, b, h, i, j: {"mask": FunctionMask(diagonals)},
    "array": lambda make, b, h, i, j: {"mask": make(KEEP[b, :, i, j])},
    "bias": lambda make, b, h, i, j: {
        "bias": make(BIAS[b, h, i, j]),
        "mask": make(np.where(KEEP, 0.5, -np.inf)[b, :, i, j]),
    },
    "alibi": lambda make, b, h, i, j: {"bias": AlibiBias(make(normal(4)[h])), "is_causal": True},
    "slopes of items": lambda make, b, h, i, j: {"bias": AlibiBias(make(normal(3, 4)[b, h])), "window": (4, 4)},
    "relative": lambda make, b, h, i, j: {"bias": RelativePositionBias(make(normal(8, 4)[:, h]), max_distance=6)},
    "dropout": lambda make, b, h, i, j: {"dropout_rate": 0.4, "rng": 7, "window": (4, None)},
    "function of scores": lambda make, b, h, i, j: {"score_mod": with_ids(make), "softcap": 3.0},
    "sinks": lambda make, b, h, i, j: {"sinks": make(normal(4)[h])} if j.start == 0 else {},
}
# A piece is cut of these as of others that stay: nothing of its own as of dropout, rules as of segments, arrays as of biases.
ALIKE = {"nothing", "causal", "prefix", "global", "blocks", "array", "alibi"}
cases = pytest.mark.parametrize("name", some_rare({n: n for n in CASES}, ALIKE.__contains__))


def with_ids(make):
    function, derivative = with_derivative(make.xp, bent)

    def factor(score, b):
        return make.xp.astype(1 + b, score.dtype)

    return (
        lambda score, b, *rest: function(score, b, *rest) * factor(score, b),
        lambda score, b, *rest: derivative(score, b, *rest) * factor(score, b),
    )


def arrays(seed=0):
    query, key, value = (normal(*shape, seed=seed + i) for i, shape in enumerate(SHAPES))
    return query, key, value


def part_of(arrays, piece):
    """Cut query, key and value; two query heads share the keys of one."""
    b, h, i, j = piece
    query, key, value = arrays
    kv = slice(h.start // 2, h.stop // 2)
    return query[b, h, i], key[b, kv, j], value[b, kv, j]


def where_it_is(make, piece, kind):
    """Say which piece it is: keys by an offset, by one for each batch item, or by their positions."""
    b, h, i, j = piece
    items, heads = (np.arange(s.start, s.stop) for s in (b, h))
    ids = {"item_ids": make(items), "head_ids": make(heads), "query_offset": OFFSET + i.start}
    if kind == "offset":
        return ids | {"key_offset": j.start}
    if kind == "offsets":
        return ids | {"key_offset": make(np.full(len(items), j.start))}
    return ids | {"key_positions": make(np.arange(j.start, j.stop))}


@pytest.fixture
def wide(library):
    """Make arrays of the widest dtype of the library, and of integers as they are."""

    def make(array):
        array = np.asarray(array)
        return library.array(array, library.dtypes()[-1]) if array.dtype.kind == "f" else library.array(array)

    make.xp = library.namespace()
    return make


def close(found, expected, library):
    digits = {"rtol": 1e-14, "atol": 1e-14} if library.dtypes()[-1] == "float64" else {"rtol": 2e-5, "atol": 2e-6}
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), **digits)


@cases
@pytest.mark.parametrize("kind", ["offset", "positions", "offsets"])
def test_pieces_make_the_whole(library, wide, impl, name, kind):
    given, how = arrays(), {"impl": impl, "tile": (2, 3)}
    whole = CASES[name](wide, *WHOLE)
    output, lse = flash_attention(*map(wide, given), **whole, query_offset=OFFSET, return_lse=True, **how)
    upstream, of_lse = normal(*output.shape, seed=8), normal(*lse.shape, seed=9)
    rate = {n: whole[n] for n in ("dropout_rate", "rng") if n in whole}
    known = output, lse, wide(upstream)
    expected = attention_gradients(
        *map(wide, given), *known, grad_lse=wide(of_lse), **whole, query_offset=OFFSET, **how
    )
    found = [np.zeros(x.shape) for x in (*given, to_numpy(output), to_numpy(lse))]
    for b, h, i in itertools.product(*HALVES[:3]):
        rows, parts = (b, h, i), []
        for j in HALVES[3]:
            piece = b, h, i, j
            own = [wide(x) for x in part_of(given, piece)]
            options = CASES[name](wide, *piece) | where_it_is(wide, piece, kind) | how | rate
            parts.append(flash_attention(*own, **options, return_lse=True))
            slopes = attention_gradients(
                *own, *(wide(to_numpy(x)[rows]) for x in known), grad_lse=wide(of_lse[rows]), **options
            )
            kv = b, slice(h.start // 2, h.stop // 2), j
            for total, at, slope in zip(found, (rows, kv, kv), slopes, strict=False):
                total[at] += to_numpy(slope)
        found[3][rows], found[4][rows] = map(to_numpy, merge_attention(*zip(*parts, strict=True)))
    for total, right in zip(found, (*expected[:3], output, lse), strict=True):
        close(total, right, library)


ROWS, KEYS = (6, 2, 5), (8, 3, 7)  # of packed sequences
PACKED = {name: name for name in CASES if name not in ("lengths", "array", "bias")}


def packed(array, lengths, items, heads, part):
    """Cut (N, S, H, D) to a part of some sequences and heads, one sequence behind the other; also return their bounds."""
    parts = [array[i, part.start : min(part.stop, lengths[i]), heads] for i in range(items.start, items.stop)]
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def where_it_stands(make, piece, places):
    """Say which piece of a packed call it is, in one of the ways that there are."""
    b, h, i, j = piece
    items = np.arange(b.start, b.stop)
    ids = {"item_ids": make(items), "head_ids": make(np.arange(h.start, h.stop))}
    if b.start == h.start == 0:
        return ids | {"query_offset": OFFSET + i.start, "key_offset": j.start}
    each = {"query_offset": make(np.full(len(items), OFFSET + i.start))}
    if i.start:
        return ids | each | {"key_positions": make(places)}
    return ids | each | {"key_offset": make(np.full(len(items), j.start))}


@pytest.mark.parametrize("name", some_rare(PACKED, ALIKE.__contains__))
def test_pieces_of_packed_sequences_make_the_whole(library, wide, impl, name):
    query, key, value = (
        normal(3, n, heads, 4, seed=n + heads + s) for n, heads, s in ((6, 4, 0), (8, 2, 1), (8, 2, 2))
    )
    columns = np.broadcast_to(np.arange(8)[:, None], (3, 8, 1))
    whole, how = (slice(0, 3), slice(0, 4), slice(0, 6), slice(0, 8)), {"impl": impl, "tile": (4, 3)}

    def attended(piece, said):
        b, h, i, j = piece
        kv = slice(h.start // 2, h.stop // 2)
        rows, (keys, ends), values = (
            packed(query, ROWS, b, h, i), packed(key, KEYS, b, kv, j), packed(value, KEYS, b, kv, j)[0],
        )  # fmt: skip
        arrays = map(wide, (rows[0], keys, values, rows[1], ends))
        return varlen_attention(*arrays, **CASES[name](wide, *piece), **said, **how, return_lse=True)

    expected = [to_numpy(x) for x in attended(whole, {"query_offset": OFFSET})]
    numbers = np.full((3, 6, 4), -1)
    numbers[:, :, 0] = [[sum(ROWS[:s]) + row for row in range(6)] for s in range(3)]
    cut = itertools.product((slice(0, 2), slice(2, 3)), HALVES[1], HALVES[2])
    for b, h, i in itertools.islice(cut, 0, None, 3):  # each part of each axis
        at = packed(numbers, ROWS, b, 0, i)[0]
        parts = [
            attended(piece, where_it_stands(wide, piece, packed(columns, KEYS, b, 0, piece[3])[0]))
            for piece in ((b, h, i, j) for j in HALVES[3])
        ]
        for found, right in zip(merge_attention(*zip(*parts, strict=True)), expected, strict=True):
            close(found, right[at][:, h], library)


@cases
def test_gradients_of_a_finished_pass(library, wide, impl, name):
    """The same as those of the function that makes the pass itself."""
    given, how = [wide(x) for x in arrays(3)], {"impl": impl, "query_offset": OFFSET}
    options = CASES[name](wide, *WHOLE) | how
    output, lse = flash_attention(*given, **options, return_lse=True)
    again, vjp = attention_vjp(*given, **options)
    close(again, output, library)
    upstream = wide(normal(*output.shape, seed=4))
    for one, other in zip(vjp(upstream), attention_gradients(*given, output, lse, upstream, **options), strict=True):
        assert (one is None) == (other is None)
        if one is not None and not isinstance(one, tuple):
            close(one, other, library)


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("options", [{"is_causal": True, "query_offset": 2, "softcap": 2.0}, {"sinks": True}], ids=str)
def test_gradients_of_a_piece_have_derivatives(library, wide, options):
    """By the operands and by the finished pass, which is that of more keys; as differences tell."""
    given = [normal(*shape, seed=i) for i, shape in enumerate([(1, 2, 5, 3), (1, 2, 7, 3), (1, 2, 7, 3)])]
    output, lse, upstream = normal(1, 2, 5, 3, seed=5), 2.0 + abs(normal(1, 2, 5, seed=6)), normal(1, 2, 5, 3, seed=7)
    options = options | ({"sinks": wide(normal(2))} if "sinks" in options else {})

    def loss(*arrays):
        found = attention_gradients(*arrays, wide(upstream), impl="tiled", tile=(3, 4), **options)
        return sum((x * x).sum() for x in found[:3])

    arrays = [*given, output, lse]
    slopes = gradients(library, loss)(*map(wide, arrays))
    for i, slope in enumerate(slopes):
        step = 1e-5 * np.cos(np.arange(arrays[i].size)).reshape(arrays[i].shape)
        above, below = (loss(*map(wide, [*arrays[:i], arrays[i] + sign * step, *arrays[i + 1 :]])) for sign in (1, -1))
        difference = float((above - below) / 2.0)
        np.testing.assert_allclose(float((to_numpy(slope) * step).sum()), difference, rtol=1e-6, atol=1e-12)


@pytest.mark.with_nan
@pytest.mark.parametrize("name", ["causal", "prefix", "relative", "dropout", "blocks"])
def test_keys_in_any_order_among_empty_slots(library, wide, impl, name):
    """As a rolling or paged buffer holds them; what an empty slot holds does not matter."""
    query, key, value = arrays()
    options = CASES[name](wide, *WHOLE) | {"query_offset": OFFSET, "impl": impl, "tile": (4, 3)}
    expected = flash_attention(wide(query), wide(key), wide(value), **options)
    order = np.asarray([5, 0, 7, -1, 3, 1, -9, 2, 6, 4])
    key, value = (np.where((order >= 0)[:, None], x[..., np.maximum(order, 0), :], np.nan) for x in (key, value))
    found = flash_attention(wide(query), wide(key), wide(value), key_positions=wide(order), **options)
    close(found, expected, library)
    each = np.stack([order, np.roll(order, 3)])
    key, value = (np.stack([x[0], np.roll(x[1], 3, axis=-2)]) for x in (key, value))
    found = flash_attention(wide(query), wide(key), wide(value), key_positions=wide(each), **options)
    close(found, expected, library)


def test_a_piece_far_behind(library, wide, impl):
    """Positions beyond the number of keys, negative ones among the rows."""
    query, key, value = (wide(x) for x in arrays())
    same = {"impl": impl, "window": (2, 3)}
    close(
        flash_attention(query, key, value, query_offset=-3, key_offset=10**6, **same),
        np.zeros((*SHAPES[0][:-1], SHAPES[2][-1])),
        library,
    )
    expected = flash_attention(query, key, value, query_offset=1, **same)
    close(flash_attention(query, key, value, query_offset=-8, key_offset=-9, **same), expected, library)
    close(flash_attention(query, key, value, query_offset=10**6 + 1, key_offset=10**6, **same), expected, library)


@pytest.mark.parametrize("mask", [WindowMask(None, None), PrefixMask(0), CausalMask() | WindowMask(None, 20)])
def test_positions_below_zero(library, wide, impl, mask):
    query, key, value = (wide(x) for x in arrays())
    found = flash_attention(query, key, value, mask, query_offset=-9, key_offset=-9, impl=impl, tile=(3, 4))
    close(found, flash_attention(query, key, value, impl=impl, tile=(3, 4)), library)


BELOW_ZERO = {
    "segments": {"mask": SegmentMask(np.zeros(20, int))},
    "no segments": {"mask": ~SegmentMask(np.zeros(20, int))},
    "blocks": {"mask": BlockMask(np.eye(10, dtype=bool), 2)},
    "length": {"mask": LengthMask(0)},
    "lengths": {"key_lengths": 0},
    "window": {"window": (3, None)},
    "strides": {"mask": StridedMask(2) & WindowMask(2, None)},
}


@pytest.mark.parametrize("options", BELOW_ZERO.values(), ids=BELOW_ZERO)
@pytest.mark.parametrize("tile", [(2, 2), (3, 4)])
def test_an_array_of_negative_offsets_marks_no_empty_slots(library, wide, options, tile):
    query, key, value = (wide(x) for x in arrays())
    how = {"query_offset": 0} | options
    expected = flash_attention(query, key, value, key_offset=-2, impl="dense", **how)
    for offset in (np.asarray([-2, -2]), np.asarray(-2)):
        found = flash_attention(query, key, value, key_offset=wide(offset), impl="tiled", tile=tile, **how)
        close(found, expected, library)


def test_gradients_at_an_offset(library, wide, impl):
    query, key, value = (wide(x) for x in arrays())
    output, vjp = attention_vjp(query, key, value, key_offset=2, impl=impl)
    expected = attention_vjp(query, key, value, impl=impl)[1](output)
    for one, other in zip(vjp(output)[:3], expected[:3], strict=True):
        close(one, other, library)


def test_numbers_of_items_and_heads(library, wide, impl):
    """They reach functions and dropout; arrays of a rule belong to the call."""
    query, key, value = (wide(x) for x in arrays())
    ids = {"item_ids": wide(np.asarray([7, 3])), "head_ids": wide(np.asarray([5, 0, 2, 9]))}
    ones, b, h = np.ones((2, 4, 6, 8)), np.asarray([7, 3]), np.asarray([5, 0, 2, 9])
    bias = 0.1 * b[:, None, None, None] * ones + 0.01 * h[:, None, None] * np.arange(8)

    def mod(score, b, h, q_idx, kv_idx):
        xp = make_float(score)
        return score + 0.1 * xp(b) + 0.01 * xp(h) * xp(kv_idx)

    def make_float(score):
        return lambda x: library.namespace().astype(x, score.dtype)

    found = flash_attention(query, key, value, score_mod=mod, impl=impl, **ids)
    close(found, flash_attention(query, key, value, bias=wide(bias), impl=impl), library)
    drawn = [
        flash_attention(query, key, value, dropout_rate=0.5, rng=3, impl=impl, **some)
        for some in (ids, {}, {"item_ids": wide(np.arange(2)), "head_ids": wide(np.arange(4))})
    ]
    close(drawn[2], drawn[1], library)
    assert not np.allclose(to_numpy(drawn[0]), to_numpy(drawn[1]))
    one, other = (
        flash_attention(query, key, value, dropout_rate=0.5, rng=3, impl=impl, item_ids=ids)
        for ids in (7, wide(np.asarray([7, 7])))
    )
    close(one, other, library)


def test_the_one_head_without_a_heads_axis_may_have_a_number(library, wide, impl):
    query, key, value = (wide(x[:, 0]) for x in arrays())
    found, expected = (
        flash_attention(query, key, value, impl=impl, mask=FunctionMask(diagonals), dropout_rate=0.5, rng=3, head_ids=h)
        for h in (5, wide(np.asarray(5)))
    )
    close(found, to_numpy(expected), library)


def test_parts_without_keys_of_their_own(library, wide, impl):
    query, key, value = (wide(x) for x in arrays())
    output, lse = flash_attention(
        query, key[..., :0, :], value[..., :0, :], key_offset=4, is_causal=True, query_offset=0, impl=impl,
        return_lse=True,
    )  # fmt: skip
    assert (to_numpy(output) == 0.0).all()
    assert (to_numpy(lse) == -math.inf).all()
