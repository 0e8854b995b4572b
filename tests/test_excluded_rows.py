"""Rows that may attend nothing: whatever they hold, and whatever comes back to them, no gradient feels it."""

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp.biases import AlibiBias
from tests._autodiff import WITH_GRADIENTS, gradients
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests.conftest import with_tiles
from tests.score_mods import bent, with_derivative

ARRAYS = (*inputs((2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 3)), normal(2, 4, 5, 3, seed=3))
NAMES = ("query", "key", "value")
NO_ROW_1 = np.arange(5)[:, None] != np.asarray([1] * 5)

SILENT = {  # options -> the rows that attend nothing
    "query lengths": ({"query_lengths": np.asarray([3, 3])}, slice(3, None)),
    "boolean mask": ({"mask": NO_ROW_1}, slice(1, 2)),
    "float mask": ({"mask": np.where(NO_ROW_1, 0.5, -np.inf)}, slice(1, 2)),
    "causal": ({"is_causal": True, "query_offset": -2}, slice(0, 2)),
    "soft cap": ({"query_lengths": 3, "softcap": 0.8}, slice(3, None)),
    "score_mod": ({"query_lengths": 3, "score_mod": bent}, slice(3, None)),
    "bias and sinks": ({"query_lengths": 3, "bias": normal(4, 5, 5), "sinks": normal(4)}, slice(3, None)),
    "bias rule and soft cap": ({"query_lengths": 3, "bias": "alibi", "softcap": 0.8}, slice(3, None)),
    "boolean mask and sinks": ({"mask": NO_ROW_1, "sinks": normal(4)}, slice(1, 2)),
    "causal and sinks": ({"is_causal": True, "query_offset": -2, "sinks": normal(4)}, slice(0, 2)),
    "dropout": ({"is_causal": True, "query_offset": -2, "dropout_rate": 0.4, "rng": 5}, slice(0, 2)),
}
BAD = [(where, bad) for where in (("query",), ("gradient",), ("query", "gradient")) for bad in (np.nan, np.inf)]

pytestmark = [
    pytest.mark.with_nan,
    # NumPy warns of infinity minus infinity in a product, as for any array.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

of_each = pytest.mark.parametrize(("options", "rows"), SILENT.values(), ids=SILENT)


def made(library, options, *, has_derivatives):
    """The options with arrays and functions of the library."""
    xp = library.namespace()
    options = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    if "score_mod" in options:
        options["score_mod"] = bent(xp) if has_derivatives else with_derivative(xp, bent)
    if isinstance(options.get("bias"), str):
        options["bias"] = AlibiBias(library.array(normal(4) ** 2))
    return options


def planted(rows, where, bad):
    """The arguments with numbers that are not finite in some rows."""
    query, key, value, gradient = ARRAYS
    query, gradient = query.copy(), gradient.copy()
    if "query" in where:
        query[..., rows, 1:] = bad
    if "gradient" in where:
        gradient[..., rows, :2] = bad
    return query, key, value, gradient


def check_same(function, rows):
    """Compare gradients with those of arguments that are finite everywhere."""
    expected = function(*ARRAYS)
    assert all(np.isfinite(x).all() and (x != 0.0).any() for x in expected)
    for where, bad in BAD:
        for name, actual, clean in zip(NAMES, function(*planted(rows, where, bad)), expected, strict=True):
            np.testing.assert_allclose(actual, clean, rtol=1e-4, atol=1e-5, err_msg=f"{bad} in {where}: {name}")


@of_each
@pytest.mark.backends("numpy", "strict", "torch", "cupy")  # on JAX it is the way of its own derivatives
@with_tiles((2, 3), (8, 8))
def test_vjp(library, impl, options, rows, tile):
    options = made(library, options, has_derivatives=False)

    def slopes(query, key, value, gradient):
        _, vjp = attention_vjp(*map(library.array, (query, key, value)), impl=impl, tile=tile, **options)
        *found, of_mask, of_bias, of_sinks = vjp(library.array(gradient))
        others = [of_mask, of_sinks, *(of_bias if isinstance(of_bias, tuple) else (of_bias,))]
        assert all(np.isfinite(to_numpy(x)).all() for x in others if x is not None)
        return [to_numpy(x) for x in found]

    check_same(slopes, rows)


@of_each
@pytest.mark.backends(*WITH_GRADIENTS)
def test_the_own_derivatives_of_the_library(library, impl, options, rows):
    options = made(library, options, has_derivatives=True)

    def loss(query, key, value, gradient):
        return flash_attention(query, key, value, impl=impl, tile=(2, 3), **options) * gradient

    slopes = gradients(library, loss)
    check_same(lambda *arrays: slopes(*arrays)[:3], rows)


@pytest.mark.backends(*WITH_GRADIENTS)
def test_sinks(library, impl):
    """The sink is all that such a row has, and it has no value."""

    def loss(sinks, query, gradient):
        _, key, value, _ = map(library.array, ARRAYS)
        options = {"is_causal": True, "query_offset": -2, "sinks": sinks, "impl": impl, "tile": (2, 3)}
        return flash_attention(query, key, value, **options) * gradient

    slopes = gradients(library, loss)
    query, _, _, gradient = planted(slice(0, 2), ("query", "gradient"), np.nan)
    expected = slopes(normal(4), ARRAYS[0], ARRAYS[3])[0]
    assert (expected != 0.0).all()
    np.testing.assert_allclose(slopes(normal(4), query, gradient)[0], expected, rtol=1e-4, atol=1e-5)


@of_each
@pytest.mark.backends("torch")
def test_what_torch_chooses(library, options, rows):
    """Its kernel, where that has a word for the call, and keeps to itself what is excluded."""
    options = made(library, options, has_derivatives=True)
    slopes = gradients(library, lambda q, k, v, g: flash_attention(q, k, v, impl="auto", **options) * g)
    check_same(lambda *arrays: slopes(*arrays)[:3], rows)


KEYS = np.arange(5)
EXCLUDING = {  # options -> the keys that some rows may not attend, and these rows
    "padding": ({"mask": (KEYS < 3) & np.ones((2, 1, 1, 1), bool)}, slice(3, None), slice(0, None)),
    "boolean mask": ({"mask": KEYS[:, None] > 2 - KEYS}, slice(0, 1), slice(0, 3)),
    "float mask": ({"mask": np.where(KEYS[:, None] > 2 - KEYS, 0.5, -np.inf)}, slice(0, 1), slice(0, 3)),
    "causal": ({"is_causal": True}, slice(3, 4), slice(0, 3)),
    "causal, more keys": ({"is_causal": True, "query_offset": 0}, slice(4, 5), slice(0, 4)),
    "key lengths": ({"key_lengths": np.asarray([3, 2])}, slice(3, None), slice(0, None)),
}


@pytest.mark.backends("torch")
@pytest.mark.parametrize("where", [("key",), ("value",), ("key", "value")], ids=" and ".join)
@pytest.mark.parametrize(("options", "keys", "rows"), EXCLUDING.values(), ids=EXCLUDING)
def test_keys_that_torch_may_not_see(library, options, keys, rows, where):
    """Neither in what `auto` chooses nor in the gradients of it; what attends them has no part in the loss."""
    options = made(library, options, has_derivatives=True)
    query, key, value, gradient = (x.copy() for x in ARRAYS)
    query, gradient = query[..., rows, :], gradient[..., rows, :]
    options = {n: x[..., rows, :] if n == "mask" and x.shape[-2] == 5 else x for n, x in options.items()}
    if options.get("is_causal"):
        options["query_offset"] = 0
    slopes = gradients(library, lambda q, k, v: flash_attention(q, k, v, **options) * library.array(gradient))
    expected = slopes(query, key, value)
    for name in where:
        {"key": key, "value": value}[name][..., keys, :] = np.nan
    for name, actual, clean in zip(NAMES, slopes(query, key, value), expected, strict=True):
        np.testing.assert_allclose(actual, clean, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.backends("torch")
def test_the_kernel_of_torch(library):
    options = {"query_lengths": library.array(np.asarray([3, 3]))}
    slopes = gradients(library, lambda q, k, v, g: flash_attention(q, k, v, impl="fused", **options) * g)
    check_same(lambda q, k, v, g: slopes(q, k, np.tile(v[..., :1], 4), np.tile(g[..., :1], 4))[:3], slice(3, None))


@pytest.mark.backends(*WITH_GRADIENTS)
def test_what_a_function_captured(library, impl):
    """A factor of all scores, of which those that are NaN are excluded."""

    def loss(factor, query, key):
        _, _, value, gradient = map(library.array, ARRAYS)
        output = flash_attention(
            query,
            key,
            value,
            score_mod=lambda score, *_: factor * score,
            query_lengths=3,
            key_lengths=4,
            impl=impl,
            tile=(2, 3),
        )
        return output * gradient

    query, key = (x.copy() for x in ARRAYS[:2])
    slopes = gradients(library, loss)
    expected = slopes(np.asarray(0.7), query, key)
    query[..., 3:, :], key[..., 4:, :] = np.nan, np.nan
    for actual, clean in zip(slopes(np.asarray(0.7), query, key), expected, strict=True):
        np.testing.assert_allclose(actual, clean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_own", [True, False], ids=["vjp", "own derivatives of the library"])
def test_a_row_that_attends_something_is_not_silenced(library, impl, is_own):
    if not is_own and not library.like(*WITH_GRADIENTS):
        pytest.skip("the library has no derivatives of its own")

    def slopes(query, key, value, gradient):
        options = {"is_causal": True, "impl": impl, "tile": (2, 2)}
        if not is_own:
            function = gradients(library, lambda q, k, v, g: flash_attention(q, k, v, **options) * g)
            return function(query, key, value, gradient)[:3]
        _, vjp = attention_vjp(*map(library.array, (query, key, value)), **options)
        return [to_numpy(x) for x in vjp(library.array(gradient))[:3]]

    query, key, value = slopes(*planted(2, ("query",), np.nan))
    assert np.isnan(query[..., 2, :]).all()
    assert np.isnan(key[..., :3, :]).all()
    assert np.isfinite(np.delete(query, 2, axis=-2)).all()
    query, _, value = slopes(*planted(2, ("gradient",), np.nan))
    assert np.isnan(query[..., 2, :]).all()
    assert np.isnan(value[..., :3, :2]).all()
    assert np.isfinite(np.delete(query, 2, axis=-2)).all()
    if is_own or impl == "tiled":  # a library that follows the formula multiplies weights of 0 by it
        assert np.isfinite(value[..., 3:, :]).all()


WHOLE = {  # nobody may attend the keys of the first item, or from row 200 on
    "query lengths": {"query_lengths": np.asarray([0, 300])},
    "boolean mask": {"mask": np.asarray([[[[False]]], [[[True]]]])},
    "float mask": {"mask": np.asarray([[[[-np.inf]]], [[[0.0]]]])},
    "causal and query lengths": {"is_causal": True, "query_lengths": 200},
}


@pytest.mark.backends(*WITH_GRADIENTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_keys_that_only_silent_rows_would_meet(library, options, bad):
    query, key, value = (normal(2, 2, 300, 64, seed=i) for i in range(3))
    unseen = (slice(None), slice(None), slice(200, None)) if "is_causal" in options else 0
    wrong_key, wrong_value = key.copy(), value.copy()
    wrong_key[unseen] = wrong_value[unseen] = bad
    options = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}

    def attend(*arrays):
        return flash_attention(*(library.array(a) if isinstance(a, np.ndarray) else a for a in arrays), **options)

    actual, expected = attend(query, wrong_key, wrong_value), attend(query, key, value)
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), atol=1e-5)
    for slope in gradients(library, attend)(query, wrong_key, wrong_value):
        assert np.isfinite(slope).all()
