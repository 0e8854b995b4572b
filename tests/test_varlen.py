"""Packed sequences against one call per sequence."""

import itertools

import numpy as np
import pytest

from attention_xp import flash_attention, varlen_attention
from attention_xp.biases import AlibiBias, RelativePositionBias
from attention_xp.masks import BlockMask, CausalMask, LengthMask, Mask, PrefixMask, SegmentMask
from tests._assertions import assert_close
from tests._autodiff import gradients
from tests._backends import to_numpy
from tests._inputs import normal

T, TK, H, HKV, D = 24, 31, 4, 2, 8
CU_Q, CU_K = np.asarray([0, 3, 3, 12, 21]), np.asarray([0, 10, 11, 20, 29])
CASES = {
    "plain": ({}, False),
    "causal": ({"is_causal": True}, False),
    "window and softcap": ({"window": (4, 2), "softcap": 2.0}, False),
    "a rule": ({"mask": PrefixMask(4), "is_causal": True}, False),
    "linear biases": ({"bias": AlibiBias(np.asarray([0.5, 0.2, 0.1, 0.0], "float32"))}, False),
    "buckets": (
        {"bias": RelativePositionBias(normal(8, 4).astype("float32"), max_distance=9), "is_causal": True},
        False,
    ),
    "other keys": ({}, True),
    "other keys, buckets": (
        {"bias": RelativePositionBias(normal(8, 4).astype("float32"), max_distance=9), "query_offset": 4},
        True,
    ),
    "other keys, causal": ({"is_causal": True, "query_offset": np.asarray([5, 1, 0, 2])}, True),
    "other keys, window": ({"window": 3, "query_offset": np.int64(3)}, True),
    "other keys, a rule": ({"mask": PrefixMask(4), "sinks": np.asarray([0.5, -1.0, 2.0, 0.0], "float32")}, True),
}
Q, K, V = normal(T, H, D), normal(TK, HKV, D, seed=1), normal(TK, HKV, D, seed=2)


def one_by_one(key, value, cu_k, **options):
    """Attend within each sequence by a call of its own, on NumPy."""
    output = np.zeros((T, H, D), "float32")
    offset = options.pop("query_offset", None)
    for i, ((a, b), (c, d)) in enumerate(zip(itertools.pairwise(CU_Q), itertools.pairwise(cu_k), strict=True)):
        own = offset if offset is None or isinstance(offset, int | np.integer) else int(offset[i])
        heads_first = (x.transpose(1, 0, 2)[None].astype("float32") for x in (Q[a:b], key[c:d], value[c:d]))
        output[a:b] = flash_attention(*heads_first, impl="dense", query_offset=own, **options)[0].transpose(1, 0, 2)
    return output


def packed(library, make, impl, options, has_own_keys):
    key, value, cu_k = (K, V, CU_K) if has_own_keys else (K[:T], V[:T], CU_Q)
    arrays = [make(x) for x in (Q, key, value)] + [make(CU_Q)] + ([make(CU_K)] if has_own_keys else [])
    given = {n: make(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}

    def attend(*arrays):
        return varlen_attention(*arrays, impl=impl, tile=(8, 16), **given)

    return attend, arrays, one_by_one(key, value, cu_k, **options)


@pytest.mark.parametrize(("options", "has_own_keys"), CASES.values(), ids=CASES)
def test_sequences_do_not_see_each_other(library, make, impl, options, has_own_keys):
    attend, arrays, expected = packed(library, make, impl, options, has_own_keys)
    assert_close(attend(*arrays), expected, library)


class Before(Mask):
    """A rule of a class of a user's own, with one number for each sequence."""

    def __init__(self, lengths):
        self.lengths = lengths

    def allowed(self, region):
        return region.kv_idx < region.per_batch(region.own(self.lengths))


LIMITS = np.asarray([2, 1, 5, 3], "int32")
IDS = np.random.default_rng(3).integers(0, 3, (4, 10)).astype("int32")
LAYOUT = normal(4, 4, 3, 3) > -0.3
SLOPES = normal(4, 4, seed=7)
# What is said of all sequences, and of one of them.
BY_SEQUENCE = {
    "lengths": (LengthMask(LIMITS), lambda i: LengthMask(int(LIMITS[i]))),
    "a prefix": (CausalMask() | PrefixMask(LIMITS), lambda i: CausalMask() | PrefixMask(int(LIMITS[i]))),
    "segments": (~SegmentMask(IDS), lambda i: ~SegmentMask(IDS[i])),
    "blocks": (BlockMask(LAYOUT, 4), lambda i: BlockMask(LAYOUT[i], 4)),
    "a class of one's own": (Before(LIMITS), lambda i: LengthMask(int(LIMITS[i]))),
}


def in_each_sequence(rule, lse=False):
    """Attend under a rule for each sequence."""
    results = np.zeros((T, H, D)), np.full((T, H), -np.inf)
    for i, (a, b) in enumerate(itertools.pairwise(CU_Q)):
        arrays = (x.transpose(1, 0, 2)[None] for x in (Q[a:b], K[a:b], V[a:b]))
        found = flash_attention(*arrays, mask=rule(i), impl="dense", return_lse=True)
        for result, part in zip(results, found, strict=True):
            result[a:b] = np.swapaxes(part[0], 0, 1)
    return results if lse else results[0]


@pytest.mark.parametrize("name", BY_SEQUENCE)
def test_a_rule_may_say_something_of_each_sequence(library, make, impl, name):
    rule, of_one = BY_SEQUENCE[name]
    output = varlen_attention(*(make(x) for x in (Q, K[:T], V[:T], CU_Q)), mask=rule, impl=impl, tile=(8, 16))
    assert_close(output, in_each_sequence(of_one), library)


@pytest.mark.parametrize("name", ["a prefix", "a class of one's own"])
def test_arrays_of_such_a_rule_may_be_those_of_the_library(library, make, name):
    rule, of_one = BY_SEQUENCE[name]
    made = Before(make(LIMITS)) if isinstance(rule, Before) else CausalMask() | PrefixMask(make(LIMITS))
    output = varlen_attention(*(make(x) for x in (Q, K[:T], V[:T], CU_Q)), mask=made)
    assert_close(output, in_each_sequence(of_one), library)


@pytest.mark.parametrize("offset", [1, -2, np.asarray([1, 0, -1])], ids=str)
@pytest.mark.parametrize("tile", [(2, 2), (3, 1)])
def test_rows_at_an_offset_with_the_bounds_of_the_keys(library, make, offset, tile):
    query, bounds = make(normal(9, 2, 4)), make(np.asarray([0, 4, 4, 9]))
    offset = make(offset) if isinstance(offset, np.ndarray) else offset
    for options in ({"is_causal": True}, {"window": (1, 1)}):
        how = {"query_offset": offset, **options}
        found, expected = (
            varlen_attention(query, query, query, bounds, impl=impl, tile=tile, **how) for impl in ("tiled", "dense")
        )
        assert_close(found, to_numpy(expected), library)


def test_log_sum_exp(library, make, impl):
    rule, of_one = BY_SEQUENCE["lengths"]
    arrays = [make(x) for x in (Q, K[:T], V[:T], CU_Q)]
    output, lse = varlen_attention(*arrays, mask=rule, impl=impl, tile=(8, 16), return_lse=True)
    expected, expected_lse = in_each_sequence(of_one, lse=True)
    assert expected_lse.shape == (T, H)
    assert np.all(expected_lse[CU_Q[-1] :] == -np.inf)
    assert_close(output, expected, library)
    assert_close(lse, expected_lse, library)


def test_log_sum_exp_of_narrow_arrays_and_of_sinks(library):
    dtype = library.dtypes()[0]
    arrays = [*(library.array(x, dtype) for x in (Q, K[:T], V[:T])), library.array(CU_Q)]
    sinks = library.array(np.asarray([0.5, -1.0, 2.0, 0.0]), dtype)
    output, lse = varlen_attention(*arrays, sinks=sinks, return_lse=True)
    assert output.dtype == arrays[0].dtype
    assert lse.dtype == library.namespace().float32
    plain = in_each_sequence(lambda _: None, lse=True)[1]
    expected = np.where(plain > -np.inf, np.logaddexp(plain, to_numpy(sinks)), -np.inf)
    assert_close(lse, expected, library, rtol=1e-2, atol=1e-2)


@pytest.mark.backends("torch", "jax")
def test_the_log_sum_exp_is_differentiable(library, impl):
    bounds = library.array(CU_Q)

    def packed(q, k):
        lse = varlen_attention(q, k, k, bounds, is_causal=True, impl=impl, tile=(8, 16), return_lse=True)[1]
        return (lse[: CU_Q[-1]] ** 2)[:, :, None]

    def by_itself(q, k):
        xp, parts = library.namespace(), []
        for a, b in itertools.pairwise(CU_Q):
            heads_first = (xp.permute_dims(x[a:b], (1, 0, 2))[None] for x in (q, k, k))
            parts.append(flash_attention(*heads_first, is_causal=True, impl="dense", return_lse=True)[1])
        return xp.concat(parts, axis=-1) ** 2

    for found, expected in zip(
        gradients(library, packed)(Q, K[:T]), gradients(library, by_itself)(Q, K[:T]), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.backends("jax")
def test_bounds_may_be_traced(library, make, impl):
    jax = pytest.importorskip("jax")

    attend, arrays, expected = packed(library, make, impl, *CASES["other keys, causal"])
    assert_close(jax.jit(attend)(*arrays), expected, library)


@pytest.mark.backends("torch")
def test_it_compiles(library, make, impl):
    torch = pytest.importorskip("torch")

    torch.compiler.reset()
    attend, arrays, expected = packed(library, make, impl, *CASES["causal"])
    assert_close(torch.compile(attend, fullgraph=True, backend="eager")(*arrays), expected, library)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("places", [{"key_offset": [3, 1, 0, 2]}, {"key_positions": np.arange(T) % 9 - 1}], ids=str)
def test_a_piece_compiles(library, make, impl, places):
    torch = pytest.importorskip("torch")

    def attend(query, key, value, bounds):
        return varlen_attention(query, key, value, bounds, score_mod=lambda s, b, h, i, j: s + b + h * j, **options)

    torch.compiler.reset()
    options = {"query_offset": [5, 1, 0, 2], "item_ids": [3, 7, 1, 0], "head_ids": [1, 5, 0, 2], **places}
    options = {name: make(np.asarray(x)) for name, x in options.items()} | {"is_causal": True, "impl": impl}
    options |= {"bias": AlibiBias(make(SLOPES)), "mask": PrefixMask(make(LIMITS)) | CausalMask()}
    arrays = [make(x) for x in (Q, K[:T], V[:T], CU_Q)]
    found = torch.compile(attend, fullgraph=True, backend="eager")(*arrays)
    assert_close(found, to_numpy(attend(*arrays)), library)


def test_a_seed_drops_the_same_weights_everywhere(library, make):
    numpy = varlen_attention(*(x.astype("float32") for x in (Q, K[:T], V[:T])), CU_Q, dropout_rate=0.4, rng=5)
    here = varlen_attention(*(make(x) for x in (Q, K[:T], V[:T], CU_Q)), dropout_rate=0.4, rng=5)
    assert_close(here, to_numpy(numpy), library)


@pytest.mark.parametrize(
    ("error", "text", "change"),
    [
        (ValueError, r"query must be packed: expected query \(T, H, D\)", {"query": Q[None]}),
        (TypeError, "cu_seqlens_q must be an integer array, got float64", {"cu_seqlens_q": CU_Q * 1.0}),
        (ValueError, r"cu_seqlens_q must start at 0", {"cu_seqlens_q": CU_Q[1:]}),
        (ValueError, r"not exceed the 24 packed rows", {"cu_seqlens_q": CU_Q * 2}),
        (ValueError, r"expected cu_seqlens_k \(N \+ 1,\)", {"cu_seqlens_k": CU_K[1:]}),
        (TypeError, "mask must be a rule", {"mask": np.ones((T, T), bool)}),
        (TypeError, "bias must be a rule from attention_xp.biases .* got ndarray", {"bias": np.ones((T, T))}),
        (ValueError, r"slopes \(H,\) or \(B, H\), up to \(4, 4\)", {"bias": AlibiBias(np.ones(3))}),
        (ValueError, r"leading axes of lengths .* expected \(4, 4\), got \(3, 1\)", {"mask": LengthMask(LIMITS[:3])}),
        (TypeError, "return_lse must be", {"return_lse": "yes"}),
        (ValueError, "key_lengths cannot be given", {"key_lengths": 3}),
        (ValueError, "both say where keys stand", {"key_offset": 2, "key_positions": np.arange(T)}),
        (ValueError, r"key_offset must .* one per sequence: expected \(N,\)", {"key_offset": np.arange(T)}),
        (ValueError, r"one position per packed key: expected \(Tk,\) = \(24,\), got", {"key_positions": np.arange(4)}),
        (TypeError, "key_positions must be an integer array", {"key_positions": 3}),
        (TypeError, "item_ids must be an int or an integer array, got float64", {"item_ids": np.ones(4)}),
        (ValueError, r"head_ids \(H,\) = \(4,\), got head_ids \(3,\)", {"head_ids": np.arange(3)}),
        (ValueError, "query_offset is required .* key_offset is given", {"key_offset": 2, "is_causal": True}),
        (ValueError, "query_offset is required", {"cu_seqlens_k": CU_Q, "is_causal": True}),
        (ValueError, r"one per sequence: expected \(N,\) = \(4,\)", {"query_offset": np.asarray([1, 2])}),
    ],
)
def test_wrong_calls(error, text, change):
    call = {"query": Q, "key": K[:T], "value": V[:T], "cu_seqlens_q": CU_Q} | change
    with pytest.raises(error, match=text):
        varlen_attention(**call)


NONE = np.zeros(0, "int32")


@pytest.mark.parametrize(
    "options",
    [
        {"key_positions": np.arange(T), "query_offset": 0},
        {"key_offset": NONE, "query_offset": NONE, "item_ids": NONE},
        {"bias": AlibiBias(np.zeros((0, H), "float32"))},
        {"mask": LengthMask(NONE)},
    ],
    ids=str,
)
def test_of_no_sequences_all_rows_are_zeros(library, make, options):
    given = {n: make(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    arrays = [make(x) for x in (Q, K[:T], V[:T], np.zeros(1, "int64"))]
    output, lse = varlen_attention(*arrays, return_lse=True, **given)
    assert_close(output, np.zeros((T, H, D), "float32"), library)
    assert np.array_equal(to_numpy(lse), np.full((T, H), -np.inf))


@pytest.mark.parametrize("rule", [{"bias": AlibiBias(np.ones((3, H)))}, {"mask": LengthMask(LIMITS)}], ids=str)
def test_rules_of_no_sequences_are_checked(rule):
    with pytest.raises(ValueError, match=r"expected .*\(0, 4\)|up to \(0, 4\)"):
        varlen_attention(Q, K[:T], V[:T], np.zeros(1, "int64"), **rule)


@pytest.mark.parametrize("bounds", [[0, 5, 3, 24], [1, 24], [0, 25], [-1, 24]], ids=str)
@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k"])
def test_wrong_bounds_are_refused_where_they_can_be_read(library, make, bounds, name):
    right = [0, *[24] * (len(bounds) - 1)]
    given = {"cu_seqlens_q": right, "cu_seqlens_k": right} | {name: bounds}
    with pytest.raises(ValueError, match=f"{name} must start at 0, not decrease and not exceed the 24 packed rows"):
        varlen_attention(*map(make, (Q, K[:T], V[:T])), **{n: make(np.asarray(x)) for n, x in given.items()})


@pytest.mark.parametrize("heads", [4, 1])
def test_a_bias_may_say_something_of_each_sequence(library, make, impl, heads):
    slopes = abs(SLOPES[:, :heads])
    bias = AlibiBias(make(slopes))
    found = varlen_attention(*map(make, (Q, K[:T], V[:T], CU_Q)), bias=bias, impl=impl, tile=(8, 16))
    expected = np.zeros((T, H, D))
    for i, (a, b) in enumerate(itertools.pairwise(CU_Q)):
        arrays = (x.transpose(1, 0, 2)[None] for x in (Q[a:b], K[a:b], V[a:b]))
        expected[a:b] = flash_attention(*arrays, bias=AlibiBias(slopes[i]), impl="dense")[0].transpose(1, 0, 2)
    assert_close(found, expected, library)


@pytest.mark.backends("torch", "jax")
def test_slopes_of_each_sequence_have_gradients(library, impl):
    def loss(slopes):
        arrays = [library.array(x) for x in (Q, K[:T], V[:T], CU_Q)]
        return varlen_attention(*arrays, bias=AlibiBias(slopes), impl=impl, tile=(8, 16)) ** 2

    def by_itself(slopes):
        xp, parts = library.namespace(), []
        for i, (a, b) in enumerate(itertools.pairwise(CU_Q)):
            heads_first = (library.array(x[a:b].transpose(1, 0, 2)[None]) for x in (Q, K, V))
            parts.append(flash_attention(*heads_first, bias=AlibiBias(slopes[i]), impl="dense"))
        return xp.concat(parts, axis=-2) ** 2

    found, expected = (gradients(library, f)(abs(SLOPES))[0] for f in (loss, by_itself))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
