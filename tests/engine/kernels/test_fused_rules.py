"""Rules that torch's kernel gets together as one boolean array."""

import numpy as np
import pytest

from attention_xp import explain, flash_attention
from attention_xp._engine.plan import borders, one_array
from attention_xp.masks import FunctionMask, PrefixMask
from tests import reference
from tests._assertions import assert_close
from tests._inputs import inputs, normal

GROUPED = inputs((2, 4, 6, 8), (2, 2, 6, 8))
LONGER = inputs((2, 4, 5, 8), (2, 2, 9, 8))
NO_HEADS = inputs((2, 6, 8))

CALLS = {
    "causal, padding of each item": (GROUPED, {"is_causal": True, "key_lengths": np.asarray([2, 5])}),
    "an item without keys": (GROUPED, {"is_causal": True, "key_lengths": np.asarray([0, 6])}),
    "rows of padding": (
        GROUPED,
        {"is_causal": True, "key_lengths": np.asarray([4, 6]), "query_lengths": np.asarray([6, 3])},
    ),
    "windows beyond the padding": (GROUPED, {"window": (1, 0), "key_lengths": np.asarray([2, 6])}),
    "rows before all keys": (GROUPED, {"is_causal": True, "query_offset": -2}),
    "an offset of each item": (LONGER, {"is_causal": True, "query_offset": np.asarray([4, 1])}),
    "a mask of each head": (GROUPED, {"is_causal": True, "mask": normal(4, 6, 6) > 0.3}),
    "no heads": (NO_HEADS, {"is_causal": True, "key_lengths": np.asarray([2, 5])}),
    "a mask without heads": (NO_HEADS, {"is_causal": True, "mask": normal(2, 6, 6) > 0.3}),
    "bias": (GROUPED, {"is_causal": True, "bias": normal(4, 6, 6), "key_lengths": np.asarray([0, 5])}),
}
pytestmark = pytest.mark.backends("torch")


def attended(library, arrays, options, impl, dtype="float32"):
    """The output and the gradients of a call as NumPy arrays, of NaN in the rows that attend nothing."""
    torch = library.namespace()
    made = {
        name: library.array(x, dtype if name == "bias" else None) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    tensors = [library.array(x, dtype).requires_grad_() for x in arrays]
    output = flash_attention(*tensors, **made, impl=impl)
    gradient = torch.asarray(normal(*output.shape, seed=9)).to(output.dtype)
    output.backward(torch.where((output == 0.0).all(axis=-1, keepdims=True), torch.nan, gradient))
    return [output.detach(), *(np.asarray(x.grad.double()) for x in tensors)]


@pytest.mark.parametrize(("arrays", "options"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rules_together_are_one_array(library, arrays, options, dtype):
    made = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    assert explain(*map(library.array, arrays), **made).mask_array is not None
    rounded = [np.asarray(library.array(x, dtype).double()) for x in arrays]
    options = {**options, "bias": np.round(options["bias"] * 8) / 8} if "bias" in options else options
    output, *gradients = attended(library, arrays, options, "auto", dtype)
    assert_close(output, reference.attention(*rounded, **options).output, library, dtype=dtype)
    expected = attended(library, rounded, options, "dense", "float64")[1:]
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol={"float32": 3e-6}.get(dtype, 0.03) * np.abs(other).max())


@pytest.mark.with_nan
def test_padding_is_silent_and_what_causal_order_excludes_as_well(library):
    q, k, v = (x.copy() for x in inputs((2, 4, 64, 8)))
    k[0, :, 40:], v[1, :, 50:], v[0, :, 30] = np.nan, np.inf, np.nan  # key 30 is no padding
    options = {"is_causal": True, "key_lengths": np.asarray([40, 50])}
    made = {**options, "key_lengths": library.array(options["key_lengths"])}
    arrays = [library.array(x, "float32") for x in (q, k, v)]
    assert explain(*arrays, **made).kernel == "fused"
    output = np.asarray(flash_attention(*arrays, **made))
    assert np.isfinite(output[0, :, :30]).all()
    assert np.isfinite(output[1]).all()
    assert np.isnan(output[0, :, 30:]).all()


@pytest.mark.parametrize(
    ("dtype", "has_unit", "is_recorded", "longest"),
    [
        ("float32", True, False, 443),
        ("bfloat16", False, False, 443),
        ("bfloat16", True, False, 2048),
        ("bfloat16", True, True, 1448),
    ],
)
def test_one_array_up_to_a_length(library, monkeypatch, dtype, has_unit, is_recorded, longest):
    monkeypatch.setattr(borders, "has_bfloat16_products", lambda: has_unit)
    lengths = library.array(np.asarray([3]))

    def chosen(length, **options):
        x = library.array(np.zeros((1, 2, length, 8)), dtype).requires_grad_(is_recorded)
        return explain(x, x, x, is_causal=True, key_lengths=lengths, **options).kernel

    assert [chosen(n) for n in (longest, longest + 1)] == ["fused", "tiled"]
    longest = max(longest // 2, 256)  # tiles of fewer rows than that leave out little
    assert [chosen(n, window=(9, 0)) for n in (longest, longest + 1)] == ["fused", "tiled"]


def test_no_array_where_it_would_be_large_or_its_bias_has_gradients(library, monkeypatch):
    arrays, torch = [*map(library.array, inputs((2, 4, 64, 8)))], library.namespace()
    lengths = torch.asarray([3, 64])
    bias = torch.zeros((64, 64), dtype=arrays[0].dtype, requires_grad=True)
    assert explain(*arrays, is_causal=True, key_lengths=lengths).mask_array == (2, 1, 64, 64)
    assert explain(*arrays, is_causal=True, bias=bias).kernel != "fused"
    monkeypatch.setattr(one_array, "_MOST", 2 * 64 * 64 - 1)
    assert explain(*arrays, is_causal=True, key_lengths=3).mask_array is None  # a number cuts the keys off
    refused = explain(*arrays, is_causal=True, key_lengths=lengths)
    assert refused["fused"].endswith("would need this mask as an array of (2, 1, 64, 64)")


def test_a_function_of_the_user_is_asked_for_all_pairs(library):
    arrays = [library.array(x, "float32") for x in GROUPED]
    rule = FunctionMask(lambda b, h, q, k: (q - k) % (b + h + 2) == 0) | PrefixMask(1)
    assert explain(*arrays, rule).kernel == "fused"
    output, expected = (flash_attention(*arrays, rule, impl=impl) for impl in ("auto", "tiled"))
    assert_close(output, np.asarray(expected), library)
