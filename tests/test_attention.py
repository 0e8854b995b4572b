"""The attention functions: shapes, dtypes, devices, and what they return."""

import numpy as np
import pytest
from array_api_compat import device as device_of

from attention_xp import cross_attention, flash_attention, scaled_dot_product_attention, self_attention
from tests import reference
from tests._assertions import assert_close, assert_equal, dtype_name
from tests._backends import to_numpy
from tests._inputs import inputs, normal

SHAPES = {
    "no batch": ((5, 8), (7, 8), (7, 3)),
    "no heads": ((2, 5, 8), (2, 7, 8), (2, 7, 3)),
    "heads": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)),
    "grouped": ((2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)),
    "multi-query": ((2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)),
    "two batch axes": ((2, 3, 4, 5, 8), (2, 3, 2, 7, 8), (2, 3, 2, 7, 8)),
    "leading axes broadcast": ((3, 1, 4, 5, 8), (1, 2, 4, 7, 8), (3, 2, 4, 7, 8)),
    "shared keys": ((3, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8)),
    "shared query": ((1, 5, 8), (3, 7, 8), (3, 7, 8)),
    "one query": ((2, 4, 1, 8), (2, 4, 7, 8), (2, 4, 7, 8)),
    "wider value": ((2, 4, 5, 2), (2, 4, 7, 2), (2, 4, 7, 9)),
    "no queries": ((2, 4, 0, 8), (2, 4, 7, 8), (2, 4, 7, 3)),
    "no keys": ((2, 4, 5, 8), (2, 4, 0, 8), (2, 4, 0, 3)),
    "empty batch": ((0, 4, 5, 8), (0, 4, 7, 8), (0, 4, 7, 3)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes_and_values(library, make, impl, shapes):
    q, k, v = inputs(*shapes)
    expected = reference.attention(q, k, v)
    output, weights = scaled_dot_product_attention(make(q), make(k), make(v), impl=impl)
    assert_close(output, expected.output, library)
    assert_close(weights, expected.weights, library)
    output, lse = flash_attention(make(q), make(k), make(v), impl=impl, return_lse=True)
    assert_close(output, expected.output, library)
    assert_close(lse, expected.lse, library)


@pytest.mark.parametrize("query_heads", [2, 6])
def test_grouped_query_heads_are_consecutive(library, make, impl, query_heads):
    q, k, v = inputs((2, query_heads, 5, 8), (2, 2, 7, 8))
    group = query_heads // 2
    grouped, _ = scaled_dot_product_attention(make(q), make(k), make(v), impl=impl)
    repeated, _ = scaled_dot_product_attention(
        make(q), make(np.repeat(k, group, axis=1)), make(np.repeat(v, group, axis=1)), impl=impl
    )
    assert_close(grouped, to_numpy(repeated), library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(library, make, impl, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    q, k, v = (make(x, dtype) for x in inputs((2, 4, 5, 8)))
    expected = reference.attention(*(to_numpy(x) for x in (q, k, v)))
    output, weights = scaled_dot_product_attention(q, k, v, impl=impl)
    assert_close(output, expected.output, library, dtype=dtype)
    assert_close(weights, expected.weights, library, dtype=dtype)
    _, lse = flash_attention(q, k, v, impl=impl, return_lse=True)
    assert_close(lse, expected.lse, library, dtype="float64" if dtype == "float64" else "float32")


def test_float64_options_do_not_promote(library, make, impl):
    widest = library.dtypes()[-1]
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    mask, bias, sinks = (make(x, widest) for x in (normal(5, 5), normal(4, 1, 5), normal(4)))
    output, weights = scaled_dot_product_attention(q, k, v, mask, bias=bias, sinks=sinks, impl=impl)
    _, lse = flash_attention(q, k, v, mask, bias=bias, sinks=sinks, impl=impl, return_lse=True)
    assert [dtype_name(x.dtype) for x in (output, weights, lse)] == ["float32"] * 3


@pytest.mark.backends("numpy", "torch", "jax", "cupy")
def test_float32_options_do_not_promote_float16(library, make, impl):
    q, k, v = (make(x, "float16") for x in inputs((2, 4, 5, 8)))
    mask, bias, sinks = make(normal(5, 5)), make(normal(4, 1, 5)), make(normal(4))
    output, weights = scaled_dot_product_attention(q, k, v, mask, bias=bias, sinks=sinks, impl=impl, softcap=5.0)
    assert [dtype_name(x.dtype) for x in (output, weights)] == ["float16"] * 2


def test_inputs_are_not_written_to(library, make, impl):
    given = [*inputs((2, 4, 5, 8)), normal(5, 5), normal(4, 5, 5), normal(4), np.asarray([3, 5]), np.asarray([2, 5])]
    q, k, v, mask, bias, sinks, query_lengths, key_lengths = made = [make(x) for x in given]
    before = [to_numpy(x).copy() for x in made]
    scaled_dot_product_attention(
        q, k, v, mask, 0.5, bias=bias, sinks=sinks, query_lengths=query_lengths, key_lengths=key_lengths,
        is_causal=True, softcap=3.0, rng=1, impl=impl,
    )  # fmt: skip
    for x, old in zip(made, before, strict=True):
        np.testing.assert_array_equal(to_numpy(x), old)


@pytest.mark.parametrize("sink", [3e38, -3e38])
def test_sinks_at_the_end_of_the_range(library, make, impl, sink):
    """A huge one takes all weight; at the other end it adds nothing."""
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    sinks = make(np.asarray([sink, 0.0, 0.0, 0.0]))
    output, lse = (to_numpy(x) for x in flash_attention(q, k, v, sinks=sinks, impl=impl, return_lse=True))
    plain, of_plain = (to_numpy(x) for x in flash_attention(q, k, v, impl=impl, return_lse=True))
    if sink > 0.0:
        np.testing.assert_allclose(output[:, 0], 0.0, atol=1e-30)
        assert (lse[:, 0] > 1e37).all()
    else:
        np.testing.assert_allclose(output[:, 0], plain[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lse[:, 0], of_plain[:, 0], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_large_scores_do_not_overflow(library, make, impl, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    q, k, v = inputs((2, 4, 5, 8))
    q, k, v = make(1000 * q, dtype), make(1000 * k, dtype), make(v, dtype)
    expected = reference.attention(*(to_numpy(x) for x in (q, k, v)))
    output, lse = flash_attention(q, k, v, return_lse=True, impl=impl)
    # The logits are of order 1e6: they carry a rounding error of order 0.1, but one key wins each row.
    assert_close(lse, expected.lse, library, atol=1.0)
    assert_close(output, expected.output, library, dtype=dtype, atol=1e-2)


def test_weights_are_optional(library, make):
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    output, weights = scaled_dot_product_attention(q, k, v, return_weights=False)
    assert weights is None
    assert_close(output, to_numpy(scaled_dot_product_attention(q, k, v)[0]), library)


def test_flash_attention_returns_a_bare_output(library, make):
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    expected, _ = scaled_dot_product_attention(q, k, v)
    assert_close(flash_attention(q, k, v), to_numpy(expected), library)


def test_weights_of_a_row_sum_to_one(library, make, xp):
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    _, weights = scaled_dot_product_attention(q, k, v)
    assert_close(xp.sum(weights, axis=-1), np.ones((2, 4, 5)), library)


def test_self_attention(library, make):
    x, keep = normal(2, 5, 8), np.tri(5, dtype=bool)
    output, weights = self_attention(make(x), 8, make(keep))
    expected = reference.attention(x, x, x, keep)
    assert_close(output, expected.output, library)
    assert_close(weights, expected.weights, library)


def test_self_attention_passes_options_on(library, make):
    x = normal(2, 5, 8)
    output, weights = self_attention(make(x), 8, is_causal=True, softcap=2.0, return_weights=False)
    assert weights is None
    assert_close(output, reference.attention(x, x, x, is_causal=True, softcap=2.0).output, library)


def test_cross_attention(library, make):
    x, context, bias = normal(2, 5, 8), normal(2, 7, 8, seed=1), normal(5, 7)
    output, weights = cross_attention(make(x), make(context), 8, bias=make(bias))
    expected = reference.attention(x, context, context, bias=bias)
    assert_close(output, expected.output, library)
    assert_close(weights, expected.weights, library)


def test_cross_attention_takes_mask_and_rate_by_position(library, make):
    x, context, keep = normal(2, 5, 8), normal(2, 7, 8, seed=1), normal(5, 7) > 0
    by_position = cross_attention(make(x), make(context), 8, make(keep), 0.5, rng=3)
    by_name = cross_attention(make(x), make(context), 8, mask=make(keep), dropout_rate=0.5, rng=3)
    for one, other in zip(by_position, by_name, strict=True):
        assert_equal(one, to_numpy(other), library)


@pytest.mark.backends("strict")
@pytest.mark.parametrize("name", ["CPU_DEVICE", "device1", "device2", "no_float64", "no_x64"])
def test_device_in_is_device_out(xp, impl, name):
    device = xp.Device(name)

    def place(values):
        return xp.asarray(np.asarray(values, np.float32), device=device)

    q, k, v = (place(x) for x in inputs((2, 4, 5, 8), (2, 2, 5, 8)))
    lengths = xp.asarray(np.asarray([3, 5], np.int32), device=device)
    output, weights = scaled_dot_product_attention(
        q, k, v, place(normal(5, 5)), 0.5, rng=1, sinks=place(normal(4)), bias=place(normal(5, 5)), is_causal=True,
        window=3, query_offset=lengths, query_lengths=lengths, key_lengths=lengths, softcap=2.0, impl=impl,
    )  # fmt: skip
    _, lse = flash_attention(q, k, v, is_causal=True, return_lse=True, impl=impl)
    assert [device_of(x) for x in (output, weights, lse)] == [device] * 3
    assert [dtype_name(x.dtype) for x in (output, weights, lse)] == ["float32"] * 3
