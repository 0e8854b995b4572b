"""Keys behind an end that Python knows are cut off: nothing reads them, and every result has a place for them."""

import importlib

import numpy as np
import pytest

from attention_xp import attention_statistics, attention_vjp, flash_attention, scaled_dot_product_attention
from attention_xp._engine.problem.problem import Problem
from attention_xp.biases import AlibiBias
from attention_xp.masks import CausalMask, LengthMask, SegmentMask
from tests._backends import to_numpy
from tests._inputs import inputs, normal

pytestmark = pytest.mark.with_nan

Q, K, V = inputs((2, 4, 5, 8), (2, 2, 7, 8))
END = 4
SOME = normal(2, 1, 5, 7) > -0.5

OPTIONS = {
    "nothing": {},
    "boolean mask": {"mask": SOME},
    "float mask": {"mask": np.where(SOME, 0.5, -np.inf)},
    "mask of keys": {"mask": SOME[0, 0, 0]},
    "mask of rows": {"mask": SOME[..., :1]},
    "bias": {"bias": normal(4, 5, 7)},
    "bias of a number": {"bias": normal(1)[0]},
    "segments": {"mask": SegmentMask(np.arange(5) % 2, np.arange(7) % 2)},
    "positions": {"is_causal": True, "query_offset": 2, "window": (3, 1)},
    "dropout and sinks": {"dropout_rate": 0.5, "rng": 3, "sinks": normal(4)},
    "every score": {"score_mod": lambda score, b, h, q_idx, kv_idx: score * score, "softcap": 2.0},
}


def made(library, options):
    """Make arrays of what is one."""
    return {
        n: library.array(np.asarray(x)) if isinstance(x, np.ndarray | np.float64) else x for n, x in options.items()
    }


def problem(make, mask=None, key=K, **options):
    """A checked call."""
    return Problem.of(make(Q), make(key), make(V[:, :, : key.shape[-2]]), mask, 0.0, options)


def sliced(options):
    """The same options for the first keys alone."""
    arrays = {n: x[..., :END] for n, x in options.items() if isinstance(x, np.ndarray) and x.shape[-1] == K.shape[-2]}
    return options | arrays


def poisoned(array):
    """Keys or values that hold NaN behind the end."""
    array = array.copy()
    array[..., END:, :] = np.nan
    return array


@pytest.mark.backends("numpy", "strict", "torch", "cupy")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_length_is_a_slice(library, make, impl, options):
    def call(key, value, **options):
        output, weights = scaled_dot_product_attention(
            make(Q), make(key), make(value), impl=impl, **made(library, options)
        )
        return to_numpy(output), to_numpy(weights)

    output, weights = call(poisoned(K), poisoned(V), key_lengths=END, **options)
    expected, of_these = call(K[..., :END, :], V[..., :END, :], **sliced(options))
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(weights[..., :END], of_these)
    assert weights.shape == (2, 4, 5, 7)
    assert not weights[..., END:].any()


@pytest.mark.parametrize("lengths", [END, np.asarray([END, 2])], ids=["int", "array"])
def test_nothing_behind_the_end_reaches_a_gradient(library, make, impl, lengths):
    def gradients(key, value):
        arrays = {"mask": np.where(SOME, 0.5, -np.inf), "bias": normal(4, 5, 7), "key_lengths": lengths}
        output, vjp = attention_vjp(make(Q), make(key), make(value), impl=impl, **made(library, arrays))
        found = vjp(make(np.ones(output.shape)))
        return [to_numpy(x) for x in (output, *found[:5])]

    found, expected = gradients(poisoned(K), poisoned(V)), gradients(K, V)
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    assert [x.shape for x in found] == [Q.shape, Q.shape, K.shape, V.shape, SOME.shape, (4, 5, 7)]
    assert not any(x[..., END:, :].any() for x in found[2:4])
    assert not any(x[..., END:].any() for x in found[4:])


def test_statistics_have_a_place_for_every_key(library, make, impl):
    found = attention_statistics(make(Q), make(poisoned(K)), key_lengths=END, impl=impl)
    expected = attention_statistics(make(Q), make(K[..., :END, :]), impl=impl)
    for actual, wanted in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(to_numpy(actual), to_numpy(wanted), rtol=1e-5)
    totals = to_numpy(found.key_totals)
    np.testing.assert_allclose(totals, np.pad(to_numpy(expected.key_totals), [(0, 0)] * 2 + [(0, 3)]), rtol=1e-5)


@pytest.mark.backends("torch", "jax")
def test_gradients_of_the_library_have_a_place_for_every_key(library, make, impl):
    def loss(key):
        return flash_attention(make(Q), key, make(V), key_lengths=END, impl=impl).sum()

    if library.like("jax"):
        gradient = importlib.import_module("jax").grad(loss)(make(poisoned(K)))
    else:
        key = make(poisoned(K)).requires_grad_()
        loss(key).backward()
        gradient = key.grad
    gradient = to_numpy(gradient)
    assert np.isfinite(gradient).all()
    assert gradient[..., :END, :].any()
    assert not gradient[..., END:, :].any()


@pytest.mark.backends("numpy", "strict", "torch", "cupy")
@pytest.mark.parametrize("mask", [None, CausalMask(), LengthMask(9)], ids=str)
def test_keys_behind_an_int_are_cut_off(make, mask):
    p = problem(make, mask, key_lengths=END, query_offset=0)
    assert (p.key.shape[-2], p.value.shape[-2], p.given_keys) == (END, END, 7)
    assert not any(isinstance(rule, LengthMask) for rule in p.rules)
    assert problem(make, LengthMask(9)).rules == ()


@pytest.mark.backends("jax")
def test_an_int_is_a_value_on_jax(make):
    assert problem(make, key_lengths=END).key.shape[-2] == 7


@pytest.mark.parametrize(
    ("lengths", "end", "rules"), [([2, 5], 5, 1), ([3, 3], 3, 0), ([9, 9], 7, 0), ([-1, -1], 0, 0)]
)
def test_the_longest_of_an_array_is_looked_at_on_numpy_alone(library, make, lengths, end, rules):
    p = problem(make, key_lengths=make(lengths))
    is_numpy = library.like("numpy")
    assert p.key.shape[-2] == (end if is_numpy else 7)
    assert len(p.rules) == (rules if is_numpy else 1)


@pytest.mark.backends("numpy", "strict", "torch", "cupy")
def test_the_least_of_several_ends_counts(make):
    p = problem(make, LengthMask(5) & LengthMask(make([6, 3])), key_lengths=6)
    assert p.key.shape[-2] == 5
    assert len(p.rules) == 1


@pytest.mark.backends("numpy", "strict", "torch", "cupy")
def test_one_key_alone(make, impl):
    for end, expected in ((0, np.zeros_like(V[..., :1, :])), (1, V[..., :1, :])):
        output = flash_attention(
            make(Q), make(K[..., :1, :]), make(V[..., :1, :]), make(np.ones((5, 1), bool)), key_lengths=end, impl=impl,
            bias=make(normal(5, 1)),
        )  # fmt: skip
        np.testing.assert_allclose(to_numpy(output), np.repeat(expected, 2, axis=1).repeat(5, axis=2), rtol=1e-6)


@pytest.mark.backends("numpy", "torch")
def test_a_bias_that_is_a_rule_counts_the_same_positions(make, impl):
    bias = AlibiBias(make(np.abs(normal(4))))
    options = {"bias": bias, "query_offset": 2, "impl": impl}
    found = flash_attention(make(Q), make(poisoned(K)), make(poisoned(V)), key_lengths=END, **options)
    expected = flash_attention(make(Q), make(K[..., :END, :]), make(V[..., :END, :]), **options)
    np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))
