"""Gradients of attention: right, finite, and untouched by what is excluded."""

import numpy as np
import pytest

from attention_xp import (
    MultiHeadParams,
    flash_attention,
    layer_normalization,
    multi_head_attention,
    scaled_dot_product_attention as sdpa,
    softmax,
)
from tests._autodiff import WITH_GRADIENTS, check, gradients
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests.score_mods import distance_penalty

pytestmark = [
    pytest.mark.backends(*WITH_GRADIENTS),
    # torch loads its forward-mode rules with a function of its own that it has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

Q, K, V = inputs((2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 3))
SQUARE = inputs((2, 5, 4))

OPTIONS = {
    "none": {},
    "causal": {"is_causal": True, "query_offset": 1},
    "empty rows": {"is_causal": True, "query_offset": -2},
    "window": {"window": (1, 1), "query_offset": 1},
    "mask": {"mask": normal(3, 5) > 0},
    "lengths": {"query_lengths": np.asarray([2, 3]), "key_lengths": np.asarray([4, 0])},
    "soft cap": {"softcap": 1.0, "scale": 0.9},
    "score_mod": {"score_mod": distance_penalty},
    "dropout": {"dropout_rate": 0.5, "rng": 1},
}

EMPTY = {
    "boolean mask": {"mask": np.zeros((5, 5), bool)},
    "float mask": {"mask": np.full((5, 5), -np.inf)},
    "key length": {"key_lengths": 0},
    "query length": {"query_lengths": 0},
    "causal": {"is_causal": True, "query_offset": -5},
}

EXCLUDED = {
    "boolean mask": {"mask": np.arange(5) < 3},
    "float mask": {"mask": np.where(np.arange(5) < 3, 0.5, -np.inf)},
    "key lengths": {"key_lengths": np.asarray([3, 3])},
    "causal": {"is_causal": True, "query_offset": -2},
    "window": {"window": (None, 0), "query_offset": -2},
}


def made(library, options):
    """The options with arrays and functions of the library."""
    options = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    if "score_mod" in options:
        options["score_mod"] = options["score_mod"](library.namespace())
    return options


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_output_and_weights(library, impl, options):
    given = made(library, options)

    def attend(q, k, v):
        return sdpa(q, k, v, impl=impl, **given)

    check(library, attend, Q, K, V)


def test_log_sum_exp(library, impl):
    check(library, lambda q, k, v: flash_attention(q, k, v, return_lse=True, impl=impl), Q, K, V)


def test_bias_mask_and_sinks(library, impl):
    def attend(bias, mask, sinks):
        q, k, v = (library.array(x, library.dtypes()[-1]) for x in (Q, K, V))
        return flash_attention(q, k, v, mask, bias=bias, sinks=sinks, return_lse=True, impl=impl)

    check(library, attend, normal(4, 3, 5), normal(1, 1, 3, 5), normal(4))


def test_multi_head_params(library):
    def attend(x, *params):
        return multi_head_attention(x, x, x, 2, 4, params=MultiHeadParams(*params))

    weights, biases = ([normal(*shape, seed=i) for i in range(4)] for shape in ((4, 4), (4,)))
    check(library, attend, normal(2, 3, 4), *weights, *biases)


def test_softmax_and_layer_normalization(library):
    check(library, softmax, normal(2, 5))
    check(library, layer_normalization, normal(2, 5), normal(5), normal(5, seed=1))


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("options", EMPTY.values(), ids=EMPTY)
def test_rows_with_nothing_to_attend_have_zero_gradients(library, impl, options, with_sinks):
    options = made(library, options)
    sinks = {"sinks": library.array(0.5)} if with_sinks else {}
    if with_sinks:
        q, k, v = (x[0] for x in SQUARE)
        options = {n: x for n, x in options.items() if not n.endswith("lengths") or isinstance(x, int)}
    else:
        q, k, v = SQUARE
    loss = gradients(library, lambda *a: flash_attention(*a, impl=impl, **options, **sinks))
    for gradient in loss(q, k, v):
        np.testing.assert_array_equal(gradient, 0.0)


def test_rows_of_a_sink_at_the_smallest_number_have_finite_gradients(library, impl):
    """Their log-sum-exp times the factor of a base must not be minus infinity."""
    q, k, v = (x[0].astype("float32") for x in SQUARE)
    sinks, mask = library.array(np.finfo("float32").min, "float32"), library.array(np.arange(q.shape[-2])[:, None] > 0)
    loss = gradients(library, lambda *a: flash_attention(*a, mask, sinks=sinks, impl=impl))
    assert all(np.isfinite(gradient).all() for gradient in loss(q, k, v))


@pytest.mark.parametrize("options", EMPTY.values(), ids=EMPTY)
def test_log_sum_exp_of_empty_rows_has_finite_gradients(library, impl, options):
    options = made(library, options)

    def finite_part(*arrays):
        xp = library.namespace()
        lse = flash_attention(*arrays, return_lse=True, impl=impl, **options)[1]
        return xp.where(xp.isfinite(lse), lse, xp.zeros_like(lse))

    for gradient in gradients(library, finite_part)(*SQUARE):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("options", [{"mask": np.tri(5, k=-2, dtype=bool)}, {"is_causal": True, "query_offset": -2}])
def test_only_the_empty_rows_have_zero_gradients(library, impl, options):
    options = made(library, options)
    dq, dk, dv = gradients(library, lambda *a: flash_attention(*a, impl=impl, **options) ** 2)(*SQUARE)
    np.testing.assert_array_equal(dq[:, :2], 0.0)
    assert np.isfinite(dq).all()
    assert (dq[:, 3:] != 0.0).all()
    np.testing.assert_array_equal(dk[:, 3:], 0.0)
    np.testing.assert_array_equal(dv[:, 3:], 0.0)
    assert (dv[:, :3] != 0.0).all()


BAD = [(where, bad) for where in (("key",), ("value",), ("key", "value")) for bad in (np.nan, np.inf)]


@pytest.mark.with_nan
@pytest.mark.parametrize("options", EXCLUDED.values(), ids=EXCLUDED)
def test_excluded_keys_and_values_never_reach_a_gradient(library, impl, options):
    options = made(library, options)
    slopes = gradients(library, lambda *a: flash_attention(*a, impl=impl, **options) ** 2)
    expected = slopes(*SQUARE)
    for where, bad in BAD:
        planted = {name: x.copy() for name, x in SQUARE._asdict().items()}
        for name in where:
            planted[name][:, 3:] = bad
        for actual, clean in zip(slopes(*planted.values()), expected, strict=True):
            np.testing.assert_allclose(actual, clean, rtol=1e-4, atol=1e-5, err_msg=f"{bad} in {where}")


@pytest.mark.with_nan
def test_queries_do_not_feel_what_only_later_queries_see(library, impl):
    slopes = gradients(library, lambda *a: flash_attention(*a, is_causal=True, impl=impl)[..., :3, :] ** 2)
    expected = slopes(*SQUARE)[0][:, :3]
    for where, bad in BAD:
        planted = {name: x.copy() for name, x in SQUARE._asdict().items()}
        for name in where:
            planted[name][:, 3] = bad
        actual = slopes(*planted.values())[0][:, :3]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=f"{bad} in {where}")


def test_dropout_weights_the_gradient_of_the_value(library, impl):
    """With the sum of the output as loss, a value's gradient is the sum of its weights after dropout."""
    q, k, v = (library.array(x) for x in SQUARE)
    weights = sdpa(q, k, v, None, 0.5, rng=1, impl=impl)[1]
    _, _, dv = gradients(library, lambda *a: flash_attention(*a, None, 0.5, rng=1, impl=impl))(*SQUARE)
    np.testing.assert_allclose(dv[..., 0], to_numpy(weights).sum(axis=-2), rtol=1e-5, atol=1e-6)
