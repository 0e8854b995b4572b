"""ONNX's operators computed here, against its node cases and its reference."""

import inspect

import jax
import numpy as np
import onnx
import pytest
import torch

from attention_xp.interop.onnx import attention, linear_attention, rotary_embedding
from tests._assertions import dtype_name
from tests._backends import Backend, to_numpy
from tests.interop._onnx_models import DTYPES, Model, cases, random_model

pytestmark = pytest.mark.backends("numpy", "torch", "jax")

FUNCTIONS = {"Attention": attention, "RotaryEmbedding": rotary_embedding, "LinearAttention": linear_attention}
CASES = cases()
BITS = {"float16": 11, "bfloat16": 8}


def outputs_of(library, model, **more):
    """Return what our function makes of a model, as a tuple."""

    def made(a):
        if a is None or library is Backend.NUMPY:
            return a
        name = dtype_name(a.dtype)
        return library.array(a.astype(np.float32) if name == "bfloat16" else a, name)

    found = FUNCTIONS[model.operator](*map(made, model.inputs), **model.attributes, **more)
    return found if isinstance(found, tuple) else (found,)


def assert_near(found, expected, *, units=1.0, rounding="float32"):
    """Compare with the numbers expected: to units in the last place of 16 bits, or to the rounding of a wider dtype."""
    assert tuple(found.shape) == expected.shape
    bits = min(BITS.get(dtype_name(found.dtype), 53), BITS.get(rounding, 53))
    found, expected = (np.asarray(x).astype(np.float64) for x in (to_numpy(found), expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    found, expected = found[finite], expected[finite]
    if bits < 53:
        limits = units * 2.0 ** (np.floor(np.log2(np.maximum(abs(expected), 2.0**-6))) - bits + 1)
    else:
        limits = {"float32": 3e-6, "float64": 1e-14}[rounding] * (1 + abs(expected))
    assert (abs(found - expected) <= limits).all(), (abs(found - expected) / limits).max()


def test_all_node_cases_are_there():
    counts = {name: sum(case.model.operator == name for case in CASES.values()) for name in FUNCTIONS}
    least = {"Attention": 93, "RotaryEmbedding": 8, "LinearAttention": 14}
    assert all(counts[name] >= n for name, n in least.items()), counts


@pytest.mark.parametrize("name", CASES)
def test_node_case(library, name):
    model, named, expected = CASES[name]
    only = {"num_outputs": len(named)} if model.operator == "Attention" else {}
    found = [x for x, is_named in zip(outputs_of(library, model, **only), named, strict=True) if is_named]
    narrow = dtype_name(model.inputs[0].dtype) in BITS
    exact = [x for x, is_named in zip(model.exact().run(), named, strict=False) if is_named] if narrow else expected
    for ours, theirs, true in zip(found, expected, exact, strict=True):
        assert dtype_name(ours.dtype) == dtype_name(theirs.dtype)
        assert_near(ours, theirs, units=2)  # theirs are rounded after each step, and up to 1.7 units off
        assert_near(ours, true)


def expected_of(model):
    """Return what the reference computes, with the scores that the operator's text says."""
    expected = model.run()
    if model.attributes.get("softcap") and model.attributes["qk_matmul_output_mode"] == 0:
        # The reference gives them after the cap.
        uncapped = {name: x for name, x in model.attributes.items() if name != "softcap"}
        expected[3] = model._replace(attributes=uncapped).run()[3]
    return expected


@pytest.mark.backends("numpy", "torch")
@pytest.mark.parametrize("operator", FUNCTIONS)
@pytest.mark.parametrize("seed", range(60))
def test_random_models(library, operator, seed):
    model = random_model(operator, seed)
    kinds = {dtype_name(model.inputs[i].dtype) for i in (0, 2)}
    found, theirs = outputs_of(library, model), model.run()
    if len(kinds) == 1:
        assert [dtype_name(x.dtype) for x in found] == [dtype_name(x.dtype) for x in theirs]
    for ours, exact in zip(found, expected_of(model.exact()), strict=True):
        assert_near(ours, exact, rounding="float64" if kinds == {"float64"} else "float32")


@pytest.mark.backends("numpy", "torch")
def test_precisions_below_ours_are_exceeded(library):
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 2, 5, 8)).astype(np.float32)
    for precision, near in ((10, 2e-3), (16, 2e-2), (1, 1e-6)):
        model = Model(
            "Attention", 24, [query, key, value], {"softmax_precision": precision, "qk_matmul_output_mode": 3}
        )
        for ours, theirs in zip(outputs_of(library, model), model.run(), strict=True):
            assert dtype_name(ours.dtype) == "float32"
            np.testing.assert_allclose(to_numpy(ours), theirs, rtol=near, atol=near)


@pytest.mark.backends("numpy", "torch")
def test_double_precision_is_rounded_once(library):
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 2, 5, 8)).astype(np.float32)
    model = Model("Attention", 24, [query, key, value], {"softmax_precision": 11, "qk_matmul_output_mode": 3})
    for ours, exact in zip(outputs_of(library, model), model.exact().run(), strict=True):
        np.testing.assert_array_equal(to_numpy(ours), exact.astype(np.float32))


@pytest.mark.backends("numpy", "torch")
@pytest.mark.parametrize("kinds", [("float16", "float32"), ("float16", "bfloat16"), ("float32", "float64")], ids=str)
def test_values_of_another_dtype(library, kinds):
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 2, 5, 8))
    inputs = [a.astype(DTYPES[kind]) for a, kind in zip((query, key, value), (kinds[0], *kinds), strict=True)]
    model = Model("Attention", 23, inputs, {"qk_matmul_output_mode": 2})
    found = outputs_of(library, model)
    assert [dtype_name(a.dtype) for a in found] == [kinds[0], kinds[0], kinds[1], kinds[0]]
    for ours, exact in zip(found, model.exact().run(), strict=True):
        assert_near(ours, exact)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("mode", range(4))
def test_outputs_that_are_not_wanted(mode):
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 8))
    whole = attention(x, x, x, is_causal=1, softcap=2.0, qk_matmul_output_mode=mode)
    for count in (1, 2, 3, 4):
        some = attention(x, x, x, is_causal=1, softcap=2.0, qk_matmul_output_mode=mode, num_outputs=count)
        assert len(some) == count
        for a, b in zip(some, whole, strict=False):
            np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.backends("numpy", "torch")
def test_what_lies_behind_the_length_of_a_buffer_is_not_seen(library):
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 4, 6, 8)).astype(np.float32)
    lengths = np.asarray([3, 5])
    inputs = [query[:, :, :2], key, value, None, None, None, lengths]
    expected = Model("Attention", 24, inputs, {"is_causal": 1}).run()[0]
    for n, *arrays in zip(lengths, key, value, strict=True):
        for a in arrays:
            a[:, n:] = np.nan
    assert_near(outputs_of(library, Model("Attention", 24, inputs, {"is_causal": 1}), num_outputs=1)[0], expected)


def buffered(x, lengths):
    return attention(x, x, x, None, None, None, lengths, is_causal=1, q_num_heads=4, kv_num_heads=4, softcap=2.0)


def test_compiled_and_differentiated():
    x, lengths = torch.randn(2, 5, 16, requires_grad=True), torch.tensor([3, 5])
    expected = buffered(x, lengths)
    compiled = torch.compile(buffered, backend="eager", fullgraph=True)(x, lengths)
    jitted = jax.jit(buffered)(*(jax.numpy.asarray(a.detach().numpy()) for a in (x, lengths)))
    for a, b, c in zip(expected, compiled, jitted, strict=True):
        torch.testing.assert_close(b, a)
        np.testing.assert_allclose(np.asarray(c), a.detach().numpy(), atol=1e-5)
    sum(a.sum() for a in expected).backward()
    assert x.grad.abs().min() > 0


def test_double_precision_needs_64_bits_of_jax():
    with jax.enable_x64(False):
        x = jax.numpy.zeros((1, 1, 2, 2))
        with pytest.raises(NotImplementedError, match="softmax_precision"):
            attention(x, x, x, softmax_precision=11)


@pytest.mark.parametrize(("operator", "version"), [("Attention", 25), ("RotaryEmbedding", 23), ("LinearAttention", 27)])
def test_signatures(operator, version):
    schema = onnx.defs.get_schema(operator, version)
    parameters = inspect.signature(FUNCTIONS[operator]).parameters.values()
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == [i.name for i in schema.inputs]
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert defaults.pop("num_outputs", 4) == 4
    assert defaults.keys() == schema.attributes.keys()
    for name, default in defaults.items():
        stored = schema.attributes[name].default_value
        theirs = onnx.helper.get_attribute_value(stored) if stored.type else None
        theirs = theirs.decode() if isinstance(theirs, bytes) else theirs
        assert default == theirs or (theirs is None and default is inspect.Parameter.empty), name


X = np.zeros((2, 4, 5, 8), dtype=np.float32)
FLAT = np.zeros((2, 5, 32), dtype=np.float32)
HEADS = {"q_num_heads": 4, "kv_num_heads": 4}


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("inputs", "attributes", "error", "text"),
    [
        (([1.0], X, X), {}, TypeError, "Q must be an array"),
        ((X, X.astype(np.float64), X), {}, TypeError, "K is float64 but Q is float32"),
        ((X, FLAT, FLAT), {}, ValueError, "K must have 3 or 4 axes like Q"),
        ((FLAT, FLAT, FLAT), {"q_num_heads": 4}, ValueError, "kv_num_heads is required"),
        ((FLAT, FLAT, FLAT), {"q_num_heads": 5, "kv_num_heads": 4}, ValueError, "q_num_heads=5"),
        ((X, X, X), {"q_num_heads": 2}, ValueError, "q_num_heads is 2"),
        ((X, X[:, :3], X[:, :3]), {}, ValueError, "divisible"),
        ((X, X, X, np.ones((5, 5), dtype=np.int64)), {}, TypeError, "attn_mask != 0"),
        ((X, X, X, np.ones((5, 6)) > 0), {}, ValueError, "attn_mask does not broadcast"),
        ((X, X, X, np.ones((3, 5)) > 0), {}, ValueError, "attn_mask does not broadcast"),
        ((X, X, X, None, X), {}, ValueError, "past_key and past_value"),
        ((X, X, X, None, X, X, np.asarray([1, 2])), {}, ValueError, "nonpad_kv_seqlen"),
        ((X, X, X, None, X[:, :2], X), {}, ValueError, "past_key"),
        ((X, X, X, None, X, X.astype(np.float64)), {}, TypeError, "past_value is float64"),
        ((X, X, X, None, None, None, np.asarray([1, 2, 3])), {}, ValueError, "nonpad_kv_seqlen"),
        ((X, X, X, None, None, None, np.asarray([1.0, 2.0])), {}, TypeError, "nonpad_kv_seqlen"),
        ((X, X, X), {"is_causal": 2}, ValueError, "is_causal must be 0 or 1"),
        ((X, X, X), {"left_window_size": -2}, ValueError, "left_window_size"),
        ((X, X, X), {"softcap": -1.0}, ValueError, "softcap"),
        ((X, X, X), {"softmax_precision": 7}, ValueError, "softmax_precision"),
        ((X, X, X), {"qk_matmul_output_mode": 4}, ValueError, "qk_matmul_output_mode"),
        ((X, X, X), {"num_outputs": 0}, ValueError, "num_outputs"),
    ],
)
def test_errors_of_attention(inputs, attributes, error, text):
    with pytest.raises(error, match=text):
        attention(*inputs, **attributes)


TABLE = np.zeros((7, 4), dtype=np.float32)
IDS = np.zeros((2, 5), dtype=np.int64)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("function", "inputs", "attributes", "error", "text"),
    [
        (rotary_embedding, (X, TABLE, TABLE), {}, ValueError, "without position_ids"),
        (rotary_embedding, (X, TABLE[None], TABLE[None], IDS), {}, ValueError, "with position_ids"),
        (rotary_embedding, (X, TABLE, TABLE, IDS * 1.0), {}, TypeError, "position_ids"),
        (rotary_embedding, (X, TABLE, TABLE[:5], IDS), {}, ValueError, "cache"),
        (rotary_embedding, (FLAT, TABLE, TABLE, IDS), {}, ValueError, "num_heads is required"),
        (rotary_embedding, (X, TABLE, TABLE, IDS), {"num_heads": 3}, ValueError, "num_heads is 3"),
        (rotary_embedding, (X, TABLE, TABLE, IDS), {"rotary_embedding_dim": 4}, ValueError, "rotary_embedding_dim"),
        (rotary_embedding, (X, TABLE[:, :2], TABLE[:, :2], IDS), {}, ValueError, "width of a head"),
        (rotary_embedding, (X, TABLE, TABLE, IDS), {"interleaved": 2}, ValueError, "interleaved"),
        (linear_attention, (X, X, X), HEADS, ValueError, "query must have 3 axes"),
        (linear_attention, (FLAT, FLAT, FLAT), HEADS, ValueError, "decay is required"),
        (linear_attention, (FLAT, FLAT, FLAT, None, FLAT), HEADS | {"update_rule": "linear"}, ValueError, "decay"),
        (linear_attention, (FLAT, FLAT, FLAT), HEADS | {"update_rule": "other"}, ValueError, "update_rule"),
        (linear_attention, (FLAT, FLAT, FLAT), {"q_num_heads": 4}, TypeError, "kv_num_heads"),
        (linear_attention, (FLAT, FLAT, FLAT, None, FLAT, FLAT[..., :3]), HEADS, ValueError, "beta"),
    ],
)
def test_errors_of_the_others(function, inputs, attributes, error, text):
    with pytest.raises(error, match=text):
        function(*inputs, **attributes)
