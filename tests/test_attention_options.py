"""Each option of attention by itself, and the order in which they act."""

import math

import numpy as np
import pytest

from attention_xp import flash_attention, scaled_dot_product_attention
from tests import reference
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests.score_mods import causal_by_infinity, distance_penalty

Q, K, V = inputs((2, 4, 5, 8), (2, 2, 7, 8))

OPTIONS = {
    "boolean mask": {"mask": normal(2, 4, 5, 7) > -0.5},
    "float mask": {"mask": normal(2, 4, 5, 7)},
    "float mask with -inf": {"mask": np.where(normal(5, 7) > 0, normal(5, 7), -np.inf)},
    "mask of a padding": {"mask": normal(2, 1, 1, 7) > -0.5},
    "mask of a row": {"mask": normal(7) > -0.5},
    "mask of a number": {"mask": np.asarray(0.5)},
    "bias": {"bias": normal(4, 5, 7)},
    "bias of the keys": {"bias": normal(7)},
    "bias and mask": {"bias": normal(4, 5, 7), "mask": normal(5, 7) > 0},
    "bias and float mask": {"bias": normal(4, 5, 7), "mask": normal(5, 7)},
    "causal, top-left": {"is_causal": True, "query_offset": 0},
    "causal, bottom-right": {"is_causal": True, "query_offset": 2},
    "causal, an offset for each": {"is_causal": True, "query_offset": np.asarray([2, 6])},
    "causal, before the keys": {"is_causal": True, "query_offset": -2},
    "window": {"window": (2, 1), "query_offset": 1},
    "window, left only": {"window": (1, None), "query_offset": 2},
    "window, right only": {"window": (None, 1), "query_offset": 0},
    "window, open": {"window": (None, None), "query_offset": 0},
    "window, itself": {"window": 0, "query_offset": 2},
    "window and causal": {"window": 2, "is_causal": True, "query_offset": np.asarray([0, 2])},
    "query lengths": {"query_lengths": np.asarray([3, 5])},
    "query length": {"query_lengths": 4},
    "no queries": {"query_lengths": np.asarray([0, 5])},
    "key lengths": {"key_lengths": np.asarray([3, 7])},
    "key length": {"key_lengths": 1},
    "no keys": {"key_lengths": np.asarray([0, 7])},
    "scale": {"scale": 0.7},
    "scale of zero": {"scale": 0.0},
    "integer scale": {"scale": 2},
    "soft cap": {"softcap": 1.5},
    "integer soft cap": {"softcap": 3},
    "score_mod": {"score_mod": distance_penalty},
    "score_mod with -inf": {"score_mod": causal_by_infinity, "query_offset": 0},
    "score_mod that empties rows": {"score_mod": causal_by_infinity, "query_offset": -2},
    "score_mod, offset": {"score_mod": distance_penalty, "query_offset": np.asarray([3, 9])},
    "sinks": {"sinks": normal(4)},
    "large sinks": {"sinks": 50.0 * normal(4)},
    "sinks and no keys": {"sinks": normal(4), "key_lengths": np.asarray([0, 7])},
}


def call(library, impl, options, q=Q, k=K, v=V):
    """Call both functions with NumPy options and return output, weights and log-sum-exp."""
    made = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    if "score_mod" in options:
        made["score_mod"] = options["score_mod"](library.namespace())
    arrays = [library.array(x) for x in (q, k, v)]
    output, weights = scaled_dot_product_attention(*arrays, impl=impl, **made)
    return output, weights, flash_attention(*arrays, impl=impl, return_lse=True, **made)[1]


def expect(options, q=Q, k=K, v=V):
    """What the formula gives for the same options."""
    options = options | {"score_mod": options["score_mod"](np)} if "score_mod" in options else options
    return reference.attention(q, k, v, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_option(library, impl, options):
    for actual, expected in zip(call(library, impl, options), expect(options), strict=True):
        assert_close(actual, expected, library)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True, "query_offset": 2, "window": (3, 0), "softcap": 2.0},
        {"key_lengths": np.asarray(5), "query_lengths": np.asarray(3), "sinks": np.asarray(0.5)},
        {"score_mod": distance_penalty, "bias": normal(5, 7), "mask": normal(5, 7) > 0},
    ],
)
@pytest.mark.parametrize("axes", [2, 3])
def test_options_without_heads(library, impl, options, axes):
    q, k, v = (x[0] if axes == 2 else x for x in inputs((2, 5, 8), (2, 7, 8)))
    if axes == 3:
        options = {n: np.broadcast_to(x, (2,)) if n.endswith("lengths") else x for n, x in options.items()}
    for actual, expected in zip(call(library, impl, options, q, k, v), expect(options, q, k, v), strict=True):
        assert_close(actual, expected, library)


def test_all_options_at_once(library, impl):
    options = {
        "mask": normal(2, 1, 5, 7) > -1,
        "bias": normal(4, 5, 7),
        "is_causal": True,
        "window": (4, None),
        "query_offset": np.asarray([2, 4]),
        "query_lengths": np.asarray([5, 3]),
        "key_lengths": np.asarray([4, 7]),
        "scale": 0.4,
        "softcap": 3.0,
        "score_mod": distance_penalty,
        "sinks": normal(4),
    }
    for actual, expected in zip(call(library, impl, options), expect(options), strict=True):
        assert_close(actual, expected, library)


def test_scale_softcap_score_mod_bias_mask_act_in_this_order(library, make, impl):
    """One query, two keys, scores worked out by hand."""
    q, k, v = make([[2.0]]), make([[3.0], [0.0]]), make([[1.0], [0.0]])
    _, weights = scaled_dot_product_attention(
        q, k, v, make([[0.25, 0.0]]), bias=make([[0.5, 0.0]]), scale=0.5, softcap=2.0, impl=impl,
        score_mod=lambda score, b, h, q_idx, kv_idx: score * score,
    )  # fmt: skip
    first = (2.0 * math.tanh(0.5 * 6.0 / 2.0)) ** 2 + 0.5 + 0.25
    expected = math.exp(first) / (math.exp(first) + 1.0)
    assert_close(weights, [[expected, 1.0 - expected]], library)


def test_sinks_take_their_share_unscaled(library, make, impl):
    q, k, v = make([[[[0.0]]]]), make([[[[1.0]]]]), make([[[[8.0]]]])
    sinks = make([math.log(3.0)])
    output, weights = scaled_dot_product_attention(q, k, v, scale=10.0, softcap=0.1, sinks=sinks, impl=impl)
    assert_close(weights, [[[[0.25]]]], library)
    assert_close(output, [[[[2.0]]]], library)


def test_an_int_window_is_open_to_both_sides(library, impl):
    both = call(library, impl, {"window": (2, 2), "query_offset": 0})
    for actual, expected in zip(call(library, impl, {"window": 2, "query_offset": 0}), both, strict=True):
        assert_close(actual, to_numpy(expected), library)


@pytest.mark.parametrize("name", ["query_offset", "query_lengths", "key_lengths"])
def test_plain_ints_stand_for_arrays(library, impl, name):
    options = {"is_causal": True, "query_offset": 1}
    plain = call(library, impl, options | {name: 3})
    array = call(library, impl, options | {name: np.asarray([3, 3])})
    for one, other in zip(plain, array, strict=True):
        assert_close(one, to_numpy(other), library)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"window": (2, 0)}], ids=["causal", "window"])
def test_decoding_row_by_row_equals_one_call(library, make, impl, options):
    q, k, v = inputs((2, 4, 5, 8), (2, 2, 5, 8))
    whole = flash_attention(make(q), make(k), make(v), impl=impl, **options)
    for row in range(5):
        step = flash_attention(
            make(q[..., row : row + 1, :]), make(k[..., : row + 1, :]), make(v[..., : row + 1, :]),
            query_offset=row, impl=impl, **options,
        )  # fmt: skip
        assert_close(step, to_numpy(whole)[..., row : row + 1, :], library)


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 4, 5, 8), (2, 3, 4, 5, 8)])
def test_score_mod_sees_integer_indices_that_broadcast(library, make, xp, impl, shape):
    seen = []

    def score_mod(score, *indices):
        for index in indices:
            assert xp.isdtype(index.dtype, "integral")
            assert np.broadcast_shapes(tuple(index.shape), tuple(score.shape)) == tuple(score.shape)
        seen.append([np.unique(to_numpy(index)).tolist() for index in indices])
        return score

    if library.like("jax") and impl == "tiled":
        pytest.skip("the indices are traced: their values cannot be seen")
    q, k, v = (make(x) for x in inputs(shape))
    flash_attention(q, k, v, score_mod=score_mod, query_offset=10, impl=impl)
    b, h, q_idx, kv_idx = ({i for tile in seen for i in tile[n]} for n in range(4))
    batch = math.prod(shape[:-3]) if len(shape) > 3 else math.prod(shape[:-2])
    assert b == set(range(batch))
    assert h == set(range(shape[-3] if len(shape) > 3 else 1))
    assert q_idx == set(range(10, 15))
    assert kv_idx == set(range(5))


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((2, 5, 8), (2, 1, 1, 5)),
        ((2, 5, 8), (1, 1, 5, 5)),
        ((2, 5, 8), (1, 2, 1, 5, 5)),
        ((2, 5, 8), (2, 1, 5, 1)),
        ((2, 5, 8), (1, 2, 5, 5)),
        ((5, 8), (1, 1, 5, 5)),
        ((5, 8), (1, 1, 1, 5)),
        ((5, 8), (1, 5, 5)),
        ((2, 4, 5, 8), (1, 2, 4, 5, 5)),
        ((2, 4, 5, 8), (1, 1, 5, 5)),
        ((2, 3, 4, 5, 8), (3, 1, 5, 5)),
    ],
)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_surplus_axes_of_a_mask_are_dropped(library, impl, shape, mask, kind):
    q, k, v = inputs(shape)
    mask = normal(*mask) > -0.5 if kind == "bool" else normal(*mask)
    expected = expect({"mask": mask}, q, k, v)
    assert expected.output.ndim == len(shape)
    for actual, wanted in zip(call(library, impl, {"mask": mask}, q, k, v), expected, strict=True):
        assert_close(actual, wanted, library)


def test_tile_does_not_change_the_result(library, make):
    q, k, v = (make(x) for x in (Q, K, V))
    expected = flash_attention(q, k, v, is_causal=True, query_offset=2)
    assert_close(flash_attention(q, k, v, is_causal=True, query_offset=2, tile=(2, 3)), to_numpy(expected), library)
