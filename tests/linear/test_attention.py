"""Linear attention against the recurrence: rules, shapes, states, dtypes, on every backend."""

import numpy as np
import pytest

from attention_xp.linear import LinearState, linear_attention
from tests._assertions import assert_close, dtype_name
from tests._backends import to_numpy
from tests._inputs import normal
from tests.linear._cases import RULES, inputs, made, part, state
from tests.linear._reference import linear

rules = pytest.mark.parametrize("rule", RULES)
IMPLS = ("recurrent", "chunked")


def compare(library, given, dtype="float32", **how):
    """Compare output and state of a call with the recurrence."""
    expected = linear(**given)
    output, after = linear_attention(**made(library, given, dtype), return_state=True, **how)
    assert_close(output, expected.output, library, dtype=dtype)
    wide = "float64" if dtype == "float64" else "float32"
    assert_close(after.memory, expected.memory, library, dtype=wide)
    if after.normalizer is not None:
        assert_close(after.normalizer, expected.key_sum, library, dtype=wide)


@rules
@pytest.mark.parametrize("linear_impl", IMPLS)
@pytest.mark.parametrize("feature_map", [None, "elu"])
def test_rules(library, rule, linear_impl, feature_map):
    given = inputs(rule, S=21) | {"feature_map": feature_map}
    if feature_map and "delta" in rule:  # mapped keys are longer than 1: with such steps the memory would grow
        given["beta"] = 0.1 * given["beta"]
    compare(library, given, impl=linear_impl, chunk_size=8)


@rules
@pytest.mark.parametrize("chunk_size", [1, 3, 16, 64])
def test_the_chunk_size_changes_nothing(library, rule, chunk_size):
    compare(library, inputs(rule) | {"feature_map": None}, chunk_size=chunk_size)


@pytest.mark.parametrize("feature_map", ["elu", "relu", None])
@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("is_causal", [False, True])
def test_feature_maps(library, feature_map, normalize, is_causal):
    given = inputs("linear", S=20) | {"feature_map": feature_map, "normalize": normalize, "is_causal": is_causal}
    if feature_map is None:  # divisors near 0 would say nothing
        given |= {name: np.abs(given[name]) for name in ("query", "key")}
    compare(library, given, chunk_size=8)


def test_a_feature_map_of_ones_own(library):
    xp = library.namespace()
    given = inputs("linear", S=20) | {"is_causal": True}
    expected = linear(**given, feature_map=lambda x: np.concatenate([np.exp(x), np.exp(-x)], axis=-1))
    output, after = linear_attention(
        **made(library, given),
        feature_map=lambda x: xp.concat([xp.exp(x), xp.exp(-x)], axis=-1),
        return_state=True,
    )
    assert_close(output, expected.output, library)
    assert_close(after.memory, expected.memory, library)


def test_not_causal_lengths_differ(library):
    given = inputs("linear") | {"query": normal(2, 4, 7, 8)}
    compare(library, given)
    compare(library, given | {"key": given["key"][..., :0, :], "value": given["value"][..., :0, :]})


def test_causal_order_is_implied(library):
    given = inputs("linear", S=9) | {"state": LinearState(np.zeros((2, 2, 8, 5)), np.zeros((2, 2, 8)))}
    output = linear_attention(**made(library, given))
    given.pop("state")
    assert_close(output, linear(**given, is_causal=True).output, library)


@rules
@pytest.mark.parametrize("cut", [0, 1, 16, 20, 37])
def test_two_calls_equal_one(library, rule, cut):
    given = inputs(rule) | {"feature_map": "relu", "is_causal": True}
    if "beta" in given:
        given["beta"] = 0.2 * given["beta"]
    first, between = linear_attention(**made(library, part(given, 0, cut)), return_state=True, chunk_size=16)
    rest = made(library, part(given, cut, 37))
    second, after = linear_attention(**rest, state=between, return_state=True, chunk_size=16)
    expected = linear(**given)
    xp = library.namespace()
    assert_close(xp.concat([first, second], axis=-2), expected.output, library)
    assert_close(after.memory, expected.memory, library)
    assert_close(after.normalizer, expected.key_sum, library)


def test_decoding_one_by_one(library):
    given = inputs("gated_delta", S=5) | {"feature_map": None}
    expected, after = linear(**given), LinearState(library.array(np.zeros((2, 2, 8, 5))))
    for t in range(5):
        output, after = linear_attention(**made(library, part(given, t, t + 1)), state=after, return_state=True)
        assert_close(output, expected.output[..., t : t + 1, :], library)
    assert after.normalizer is None


@rules
@pytest.mark.parametrize("S", [0, 1])
def test_hardly_any_positions(library, rule, S):
    compare(library, inputs(rule, S=S) | {"feature_map": None})
    compare(library, inputs(rule, S=S) | {"state": state(), "normalize": True})


@pytest.mark.parametrize(("lead", "heads"), [((), (3, 3)), ((3, 2), (4, 1)), ((2,), (6, 2)), ((0,), (2, 2))], ids=str)
def test_heads_and_leading_axes(library, lead, heads):
    compare(library, inputs("gated_delta", lead=lead, heads=heads, S=9) | {"feature_map": None}, chunk_size=4)


@pytest.mark.parametrize("shape", [(11, 4), (3, 11, 4)])
def test_without_heads(library, shape):
    x = normal(*shape)
    given = {"query": x, "key": 0.3 * x, "value": x, "update_rule": "gated", "decay": -np.abs(normal(*shape, seed=1))}
    compare(library, given, chunk_size=4)
    start = LinearState(normal(*shape[:-2], 4, 4), np.abs(normal(*shape[:-2], 4)))
    compare(library, given | {"state": start}, chunk_size=4)


def test_leading_axes_broadcast(library):
    given = {
        "query": normal(3, 1, 4, 9, 8),
        "key": normal(1, 2, 2, 9, 8) / 3.0,
        "value": normal(1, 1, 2, 9, 5),
        "decay": -np.abs(normal(2, 1, 1, 8)),
        "beta": 0.5 * np.abs(np.tanh(normal(1, 9, 1))),
        "update_rule": "gated_delta",
        "feature_map": None,
        "state": LinearState(normal(2, 2, 8, 5), normal(1, 8)),
    }
    output, after = linear_attention(**made(library, given), return_state=True, chunk_size=4)
    expected = linear(**given)
    assert_close(output, expected.output, library)
    assert_close(after.memory, np.broadcast_to(expected.memory, (3, 2, 2, 8, 5)), library)
    assert_close(after.normalizer, np.broadcast_to(expected.key_sum, (3, 2, 2, 8)), library)


@rules
def test_dtypes(library, rule):
    for dtype in library.dtypes():
        given = made(library, inputs(rule) | {"feature_map": None}, dtype)
        output, after = linear_attention(**given, return_state=True)
        rounded = {name: to_numpy(x) if hasattr(x, "dtype") else x for name, x in given.items()}
        assert_close(output, linear(**rounded).output, library, dtype=dtype)
        assert dtype_name(after.memory.dtype) == ("float64" if dtype == "float64" else "float32")


def test_a_float32_state_continues_16_bit_input(library):
    if "float16" not in library.dtypes():
        pytest.skip("the backend has no float16")
    given = made(library, inputs("linear", S=9) | {"feature_map": None}, "float16")
    output, after = linear_attention(**given, state=LinearState(library.array(state()[0])), return_state=True)
    assert dtype_name(output.dtype) == "float16"
    assert dtype_name(after.memory.dtype) == "float32"


@pytest.mark.backends("numpy", "torch", "jax", "cupy")
@rules
@pytest.mark.parametrize("strength", [0.2, 2.0])
def test_chunks_agree_with_the_recurrence_on_long_input(library, rule, strength):
    """Decays of up to exp(-1e6), and of nearly 1, side by side."""
    given = inputs(rule, lead=(), heads=(1, 1), S=4096, D=16, Dv=16, strength=strength) | {"feature_map": None}
    arrays = made(library, given)
    rounded = {name: to_numpy(x) if hasattr(x, "dtype") else x for name, x in arrays.items()}
    expected = linear(**rounded).output
    chunked, recurrent = (to_numpy(linear_attention(**arrays, impl=impl)) for impl in ("chunked", "recurrent"))
    size = np.maximum(np.abs(expected), np.std(expected))
    assert np.all(np.isfinite(chunked))
    assert np.max(np.abs(chunked - expected) / size) < 1e-4
    assert np.max(np.abs(recurrent - expected) / size) < 1e-4
    assert np.sqrt(np.mean((chunked - expected) ** 2)) < 3e-6 * np.std(expected)


@pytest.mark.parametrize("rule", ["gated", "gated by head", "gated_delta", "gated_delta by head"])
def test_a_decay_may_erase_everything(library, rule):
    given = inputs(rule, S=20) | {"feature_map": None}
    given["decay"][..., 10, :] = -np.inf
    output, after = linear_attention(**made(library, given), return_state=True, chunk_size=8)
    rest = linear(**part(given, 10, 20))
    assert_close(output[..., 10:, :], rest.output, library)
    assert_close(after.memory, rest.memory, library)


def test_a_row_that_recalls_nothing_is_zero(library):
    given = inputs("linear", S=6) | {"feature_map": "relu", "is_causal": True}
    given["query"] = -np.abs(given["query"])
    output = to_numpy(linear_attention(**made(library, given)))
    assert not output.any()


def test_long_keys_do_not_upset_the_triangle(library):
    """Steps that overshoot make powers of the triangle huge; substitution never takes them."""
    given = inputs("delta", S=16, D=4) | {"feature_map": None}
    given |= {"key": 2.0 * given["key"], "beta": np.ones_like(given["beta"])}
    expected = linear(**given).output
    chunked = to_numpy(linear_attention(**made(library, given), chunk_size=16))
    np.testing.assert_allclose(chunked, expected, rtol=1e-3, atol=1e-5 * np.max(np.abs(expected)))
