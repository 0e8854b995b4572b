"""Gradients of linear attention: by automatic differentiation, and by formula on every backend."""

import importlib

import numpy as np
import pytest

from attention_xp.linear import LinearState, linear_attention, linear_attention_vjp, performer_features
from tests._assertions import assert_close, dtype_name
from tests._autodiff import WITH_GRADIENTS, check
from tests._backends import to_numpy
from tests._inputs import normal
from tests._quick import some_rare
from tests.linear._cases import PARTS, RULES, inputs, made, state
from tests.linear._reference import linear

rules = pytest.mark.parametrize("rule", some_rare({rule: rule for rule in RULES}, PARTS.__contains__))
ARRAYS = ("query", "key", "value", "decay", "beta")
# torch loads its forward-mode rules with a function of its own that it has deprecated.
quiet = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def small(rule, **changes):
    """A call that is quick to differentiate by differences."""
    return inputs(rule, lead=(), heads=(2, 1), S=5, D=3, Dv=2) | {"chunk_size": 2} | changes


def by_position(given):
    """The arrays of a call, and a function of them; state included."""
    names = [name for name in ARRAYS if name in given]
    start = given.get("state")
    arrays = [given[name] for name in names] + ([] if start is None else list(start))

    def function(*xs):
        keywords = given | dict(zip(names, xs, strict=False))
        if start is not None:
            keywords["state"] = LinearState(*xs[len(names) :])
        output, after = linear_attention(**keywords, return_state=True)
        return (output, *(x for x in after if x is not None))

    return arrays, function


@quiet
@pytest.mark.backends(*WITH_GRADIENTS)
@rules
def test_automatic_differentiation(library, rule):
    """First and second derivatives, forward and reverse, against differences."""
    given = small(rule, feature_map=None, state=state((), 1, 3, 2), normalize=False)
    arrays, function = by_position(given)
    check(library, function, *arrays)


@quiet
@pytest.mark.backends(*WITH_GRADIENTS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_automatic_differentiation_with_divisor(library, is_causal):
    arrays, function = by_position(small("linear", is_causal=is_causal))
    check(library, function, *arrays)


def weighted(given, grad, of_memory, of_sum):
    """A number that depends on all results, by the recurrence."""
    result = linear(**given)
    total = np.sum(result.output * grad) + np.sum(result.memory * of_memory)
    return total if of_sum is None else total + np.sum(result.key_sum * of_sum)


def slopes(given, directions, grad, of_memory, of_sum):
    """The derivative of that number along a direction of each array."""
    found = {}
    for name, direction in directions.items():
        ahead, behind = (shifted(given, name, sign * 1e-5 * direction) for sign in (1.0, -1.0))
        found[name] = (weighted(ahead, grad, of_memory, of_sum) - weighted(behind, grad, of_memory, of_sum)) / 2e-5
    return found


def shifted(given, name, step):
    """The same call with one array moved."""
    if name in ("memory", "normalizer"):
        return given | {"state": given["state"]._replace(**{name: getattr(given["state"], name) + step})}
    return given | {name: given[name] + step}


def compare(library, given, dtype="float64"):
    """Compare `linear_attention_vjp` with differences of the recurrence, along one direction of each array."""
    dtype = dtype if dtype in library.dtypes() else "float32"
    expected = linear(**given)
    grad = normal(*expected.output.shape, seed=7)
    (output, after), vjp = linear_attention_vjp(**made(library, given, dtype), return_state=True)
    of_memory = normal(*after.memory.shape, seed=8)
    of_sum = None if after.normalizer is None else normal(*after.normalizer.shape, seed=9)
    assert_close(output, expected.output, library, dtype=dtype)
    of_state = LinearState(*(None if x is None else library.array(x, dtype) for x in (of_memory, of_sum)))
    gradients = vjp(library.array(grad, dtype), of_state)
    arrays = {name: given[name] for name in ARRAYS if name in given}
    actual = {name: getattr(gradients, name) for name in ARRAYS}
    assert {name for name, x in actual.items() if x is not None} == set(arrays)
    if "state" in given:
        arrays |= {"memory": given["state"].memory, "normalizer": given["state"].normalizer}
        actual |= gradients.state._asdict()
    directions = {name: normal(*x.shape, seed=10) for name, x in arrays.items()}
    rtol = 1e-6 if dtype == "float64" else 1e-3
    for name, slope in slopes(given, directions, grad, of_memory, of_sum).items():
        assert tuple(actual[name].shape) == arrays[name].shape
        assert dtype_name(actual[name].dtype) == dtype
        found = np.sum(to_numpy(actual[name]).astype(np.float64) * directions[name])
        np.testing.assert_allclose(found, slope, rtol=rtol, atol=rtol * np.sqrt(grad.size), err_msg=name)


@rules
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_formula(library, rule, chunk_size):
    given = inputs(rule, S=21, strength=0.5) | {"chunk_size": chunk_size, "feature_map": None}
    compare(library, given)


@rules
def test_formula_with_all_options(library, rule):
    given = inputs(rule, S=13, strength=0.5) | {"chunk_size": 4, "state": state(), "scale": 0.7, "feature_map": "elu"}
    if "beta" in given:
        given["beta"] = 0.1 * given["beta"]
    compare(library, given)


@pytest.mark.parametrize("feature_map", [None, "elu", "relu"])
def test_formula_without_causal_order(library, feature_map):
    compare(library, inputs("linear", S=13) | {"feature_map": feature_map, "query": normal(2, 4, 6, 8)})


def test_formula_where_axes_broadcast(library):
    given = {
        "query": normal(3, 1, 4, 9, 8),
        "key": normal(1, 2, 2, 9, 8) / 3.0,
        "value": normal(1, 1, 2, 9, 5),
        "decay": -np.abs(normal(2, 1, 1, 8)),
        "beta": 0.5 * np.abs(np.tanh(normal(1, 9, 1))),
        "update_rule": "gated_delta",
        "feature_map": None,
        "state": LinearState(normal(2, 2, 8, 5), normal(1, 8)),
        "chunk_size": 4,
    }
    compare(library, given)
    compare(library, {name: given[name] for name in ("query", "key", "value")})


@pytest.mark.parametrize("S", [0, 1])
def test_formula_of_hardly_any_positions(library, S):
    compare(library, inputs("gated_delta", S=S) | {"state": state(), "feature_map": None})


class Cosh:
    """A feature map that brings its derivative."""

    def __init__(self, xp):
        self.xp = xp

    def __call__(self, x):
        return self.xp.cosh(x)

    def vjp(self, x):
        return self.xp.cosh(x), lambda grad: grad * self.xp.sinh(x)


def test_formula_with_a_feature_map_of_ones_own(library):
    given = made(library, inputs("linear", S=9) | {"is_causal": True})
    output, vjp = linear_attention_vjp(**given, feature_map=Cosh(library.namespace()))
    mapped = made(library, inputs("linear", S=9) | {"is_causal": True, "feature_map": None, "normalize": True})
    xp = library.namespace()
    key = mapped["key"]
    mapped |= {name: xp.cosh(mapped[name]) for name in ("query", "key")} | {"scale": 1.0}
    same, of_features = linear_attention_vjp(**mapped)
    grad = library.array(normal(*output.shape))
    assert_close(output, to_numpy(same), library)
    assert_close(vjp(grad).key, to_numpy(of_features(grad).key * xp.sinh(key)), library)


@pytest.mark.backends("numpy", "strict", "cupy")
def test_a_feature_map_without_derivative_is_refused(library):
    given = made(library, inputs("linear", S=9))
    with pytest.raises(ValueError, match=r"feature_map has no derivative on .* vjp"):
        linear_attention_vjp(**given, feature_map=library.namespace().exp)


@pytest.mark.backends(*WITH_GRADIENTS)
@pytest.mark.parametrize(  # a feature map knows nothing of the rule behind it
    ("rule", "feature_map"),
    some_rare({rule: (rule, None) for rule in RULES}, PARTS.__contains__)
    + [("linear", m) for m in ("elu", "performer", "own")],
)
def test_formula_and_automatic_differentiation_agree(library, rule, feature_map):
    xp = library.namespace()
    maps = {
        "performer": lambda: performer_features(8, 8, rng=0, xp=xp, dtype="float32"),
        "own": lambda: lambda x: xp.exp(x) + xp.exp(-x),
    }
    options = {"feature_map": maps[feature_map]() if feature_map in maps else feature_map, "chunk_size": 4}
    given = made(library, inputs(rule, S=11) | {"state": state()})
    if "beta" in given:
        given["beta"] = 0.05 * given["beta"]
    output, vjp = linear_attention_vjp(**given, **options)
    grad = library.array(normal(*output.shape))
    by_formula = vjp(grad)
    names = [name for name in ARRAYS if name in given]

    def function(*xs):
        keywords = given | dict(zip(names, xs, strict=False)) | {"state": LinearState(*xs[len(names) :])}
        return (linear_attention(**keywords, **options) * grad).sum()

    arrays = [*(given[name] for name in names), *given["state"]]
    if library.like("jax"):
        expected = importlib.import_module("jax").grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    else:
        leaves = [x.requires_grad_() for x in arrays]
        autograd = importlib.import_module("torch").autograd
        expected = autograd.grad(function(*leaves), leaves, materialize_grads=True)
    actual = [*(getattr(by_formula, name) for name in names), *by_formula.state]
    for one, other in zip(actual, expected, strict=True):
        size = np.max(np.abs(to_numpy(other))) + 1e-6
        assert_close(one / size, to_numpy(other) / size, library, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["gated", "gated by head", "gated_delta", "gated_delta by head"])
def test_gradients_where_everything_is_erased(library, rule):
    given = inputs(rule, S=9) | {"feature_map": None, "chunk_size": 4}
    given["decay"][..., 6, :] = -np.inf
    output, vjp = linear_attention_vjp(**made(library, given))
    grad = np.ones(output.shape)
    grad[..., :6, :] = 0.0
    gradients = vjp(library.array(grad))
    for name in ("query", "key", "value", "decay"):
        found = to_numpy(getattr(gradients, name))
        assert np.all(np.isfinite(found))
        assert not found[..., :6, :].any()
    assert to_numpy(gradients.key)[..., 6:, :].any()


def test_16_bit_gradients(library):
    if "float16" not in library.dtypes():
        pytest.skip("the backend has no float16")
    given = made(library, inputs("gated_delta", S=9) | {"feature_map": None}, "float16")
    output, vjp = linear_attention_vjp(**given)
    gradients = vjp(library.array(np.ones(output.shape), "float16"))
    assert {dtype_name(x.dtype) for x in gradients if x is not None} == {"float16"}


def test_the_wrong_gradient_is_refused(library):
    given = made(library, inputs("linear", S=9))
    _, vjp = linear_attention_vjp(**given)
    with pytest.raises(ValueError, match=r"grad_output .* output \(2, 4, 9, 5\), grad_output \(2, 4, 9, 4\)"):
        vjp(library.array(np.ones((2, 4, 9, 4))))
    ones = library.array(np.ones((2, 4, 9, 5)))
    with pytest.raises(
        ValueError, match=r"grad_state.memory .* state \(2, 2, 8, 5\), grad_state.memory \(2, 2, 5, 8\)"
    ):
        vjp(ones, LinearState(library.array(np.ones((2, 2, 5, 8)))))
    with pytest.raises(TypeError, match="grad_state must be a LinearState"):
        vjp(library.array(np.ones((2, 4, 9, 5))), 3)


def test_an_option_that_does_not_exist_is_refused(library):
    with pytest.raises(TypeError, match="'mask'"):
        linear_attention_vjp(**made(library, inputs("linear", S=9)), mask=None)
