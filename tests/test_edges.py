"""Corners that once were wrong, on every kernel."""

import numpy as np
import pytest

from attention_xp import (
    attention_vjp,
    dropout,
    flash_attention,
    init_multi_head_params,
    learned_positional_encoding,
    scaled_dot_product_attention,
)
from attention_xp.masks import FunctionMask
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests._public_calls import CALLS
from tests._slopes import check_gradients, named
from tests._transforms import results
from tests.reference import attention
from tests.score_mods import causal_by_infinity

SHAPE = (2, 3, 40, 8)


@pytest.mark.parametrize("kernel", ["auto", "dense", "tiled"])
@pytest.mark.parametrize(
    "options",
    [{"key_lengths": 5}, {"mask": np.asarray(True)}, {"bias": np.asarray(0.5)}, {"mask": np.arange(40) < 7}],
    ids=["one length", "0-d mask", "0-d bias", "1-d mask"],
)
def test_options_with_fewer_axes_than_the_scores(library, make, kernel, options):
    query, key, value = inputs(SHAPE)
    given = {n: make(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    output = flash_attention(make(query), make(key), make(value), impl=kernel, **given)
    assert_close(output, attention(query, key, value, **options)[0], library)


def swapped(x):
    """The same numbers in the other byte order."""
    return x.astype(x.dtype.newbyteorder())


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("name", CALLS)
def test_the_other_byte_order(name):
    call, arrays = CALLS[name]
    every, n = set(range(len(arrays))), len(arrays)
    wanted = results(call(*arrays))
    for which in [every, *({i} for i in range(n) if n > 1)]:
        given = [swapped(x) if i in which else x for i, x in enumerate(arrays)]
        for actual, expected in zip(results(call(*given)), wanted, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1, 2)])
def test_the_query_tells_the_byte_order_of_the_output(impl, which):
    given = [swapped(x) if i in which else x for i, x in enumerate(inputs(SHAPE))]
    assert flash_attention(*given, impl=impl).dtype == given[0].dtype


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("options", [{}, {"key_lengths": 30}], ids=["whole", "short"])
def test_the_query_tells_the_byte_order_of_the_weights(impl, options):
    query, key, value = (swapped(x) for x in inputs(SHAPE))
    output, weights = scaled_dot_product_attention(query, key, value, impl=impl, **options)
    assert (output.dtype, weights.dtype) == (query.dtype, query.dtype)


@pytest.mark.parametrize("size", [1e13, 1e-20])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_powers_times_large_values(library, make, impl, size, sign):
    query, value = np.full((1, 1, 600, 4), 5.4), np.full((1, 1, 600, 4), size)
    output = flash_attention(make(query), make(sign * query), make(value), scale=0.5, impl=impl)
    np.testing.assert_allclose(to_numpy(output), value, rtol=1e-5)


def test_a_late_large_score(library, make, impl):
    query = np.full((1, 1, 1024, 1), 10.0)
    key, value = np.zeros_like(query), np.full_like(query, 3000.0)
    key[..., -1, :] = 8.2
    output = flash_attention(make(query), make(key), make(value), scale=1.0, impl=impl)
    np.testing.assert_allclose(to_numpy(output), value, rtol=1e-5)


@pytest.mark.with_nan
def test_nan_in_padded_queries(library, make, impl):
    query, key, value = inputs(SHAPE)
    query[..., 30:, :] = np.nan
    output = to_numpy(flash_attention(make(query), make(key), make(value), query_lengths=30, impl=impl))
    assert np.isfinite(output[..., :30, :]).all()
    assert not output[..., 30:, :].any()


@pytest.mark.parametrize(("width", "value_width"), [(0, 3), (4, 0)])
def test_a_width_of_zero_under_a_mask(library, make, impl, width, value_width):
    arrays = inputs((2, 4, 5, width), (2, 2, 5, width), (2, 2, 5, value_width))
    output, vjp = attention_vjp(*map(make, arrays), is_causal=True, impl=impl)
    assert_close(output, attention(*arrays, is_causal=True).output, library)
    gradient, given = np.ones((2, 4, 5, value_width)), dict(zip(("query", "key", "value"), arrays, strict=True))
    check_gradients(named(vjp(make(gradient)), to_numpy), given, {"is_causal": True}, gradient, rtol=2e-4)


@pytest.mark.parametrize("name", ["bias", "mask"])
def test_rows_of_minus_infinity(library, make, impl, name):
    query, key, value = inputs(SHAPE)
    addend = np.zeros((40, 40))
    addend[3], addend[5, :9] = -np.inf, -np.inf
    output = flash_attention(make(query), make(key), make(value), impl=impl, **{name: make(addend)})
    assert_close(output, attention(query, key, value, mask=addend)[0], library)


def test_a_row_of_the_smallest_number_is_shared_evenly(library, make, impl):
    query, key, value = inputs(SHAPE)
    mask = np.zeros((40, 40))
    mask[3] = float(np.finfo("float32").min)
    output = flash_attention(make(query), make(key), make(value), make(mask), impl=impl)
    np.testing.assert_allclose(to_numpy(output)[..., 3, :], value.mean(axis=-2), rtol=1e-4, atol=1e-5)


def test_sinks_of_minus_infinity_are_none(library, make, impl):
    query, key, value = inputs(SHAPE)
    sinks = make(np.full(3, -np.inf))
    _, lse = flash_attention(
        make(query), make(key), make(value), key_lengths=0, sinks=sinks, impl=impl, return_lse=True
    )
    assert_close(lse, np.full(SHAPE[:-1], -np.inf), library)


def test_the_smallest_sinks_are_none(library, make, impl):
    """They overflow by no factor of a base: warnings are errors here."""
    query, key, value = inputs(SHAPE)
    sinks = make(np.full(3, -3e38))
    output = flash_attention(make(query), make(key), make(value), sinks=sinks, impl=impl)
    assert_close(output, attention(query, key, value)[0], library)


def test_a_score_mod_may_return_fewer_axes(library, make, impl):
    query, key, value = inputs(SHAPE)
    table = make(np.arange(40.0))
    output = flash_attention(
        make(query), make(key), make(value), score_mod=lambda s, b, h, i, j: table[None, :], impl=impl
    )
    expected = attention(np.zeros_like(query), key, value, mask=np.broadcast_to(np.arange(40.0), (40, 40)))[0]
    assert_close(output, expected, library)
    np.testing.assert_array_equal(to_numpy(table), np.arange(40.0))


def test_a_mask_function_that_changes_is_asked_again(library, make, impl):
    query, key, value = (make(x) for x in inputs(SHAPE))
    limit = {"keys": 5}
    mask = FunctionMask(lambda b, h, i, j: j < limit["keys"])
    before = to_numpy(flash_attention(query, key, value, mask, impl=impl))
    limit["keys"] = 20
    assert (before != to_numpy(flash_attention(query, key, value, mask, impl=impl))).any()


def test_draws_have_the_dtype_asked_for():
    assert init_multi_head_params(8, 2, rng=0, dtype="float16").w_q.dtype == np.float16
    assert learned_positional_encoding(3, 4, rng=0, dtype="float16").dtype == np.float16


def test_a_seed_may_be_an_integer_of_numpy():
    x = normal(100)
    np.testing.assert_array_equal(dropout(x, 0.5, rng=np.int64(3)), dropout(x, 0.5, rng=3))


@pytest.mark.backends("torch")
def test_torch_nan_behind_the_lengths(library, make):
    query, key, value = inputs(SHAPE)
    expected = attention(query, key, value, key_lengths=np.asarray([30, 20]))[0]
    key[..., 30:, :], value[..., 30:, :] = np.nan, np.nan
    output = flash_attention(make(query), make(key), make(value), key_lengths=make(np.asarray([30, 20])))
    assert_close(output, expected, library)


@pytest.mark.backends("jax")
def test_jax_gradient_of_a_mapped_call(library, make):
    jax = pytest.importorskip("jax")
    x = make(normal(3, 1, 2, 300, 4))

    def loss(x):
        return jax.vmap(lambda a: flash_attention(a, a, a, is_causal=True))(x).sum()

    one = jax.grad(lambda a: flash_attention(a, a, a, is_causal=True, impl="dense").sum())
    np.testing.assert_allclose(jax.grad(loss)(x), np.stack([one(a) for a in x]), atol=1e-4)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_must_suit(heads):
    with pytest.raises(ValueError, match=r"not divisible by the 2 heads of key: .* heads before the sequence"):
        scaled_dot_product_attention(np.ones((heads, 4, 8))[None], *(np.ones((1, 2, 4, 8)),) * 2)


def test_rows_that_a_function_empties_and_a_bias_moves(library, make, impl):
    query, key, value = inputs((1, 2, 40, 8))
    options = {"query_offset": -5, "bias": np.ones(40)}
    made = {"score_mod": causal_by_infinity(library.namespace()), "bias": make(options["bias"]), "query_offset": -5}
    output = flash_attention(make(query), make(key), make(value), impl=impl, **made)
    expected = attention(query, key, value, score_mod=causal_by_infinity(np), **options)
    assert_close(output, expected.output, library)
