"""Packed sequences against one call per sequence."""

import itertools

import numpy as np
import pytest

from attention_xp import flash_attention, varlen_attention
from attention_xp.biases import AlibiBias, RelativePositionBias
from attention_xp.masks import PrefixMask
from tests._assertions import assert_close
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
        (ValueError, r"slopes \(H,\) with H = 4", {"bias": AlibiBias(np.ones(3))}),
        (ValueError, "key_lengths cannot be given", {"key_lengths": 3}),
        (ValueError, "query_offset is required", {"cu_seqlens_k": CU_Q, "is_causal": True}),
        (ValueError, r"one per sequence: expected \(N,\) = \(4,\)", {"query_offset": np.asarray([1, 2])}),
    ],
)
def test_wrong_calls(error, text, change):
    call = {"query": Q, "key": K[:T], "value": V[:T], "cu_seqlens_q": CU_Q} | change
    with pytest.raises(error, match=text):
        varlen_attention(**call)
