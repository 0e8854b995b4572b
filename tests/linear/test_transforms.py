"""Linear attention inside the transformations of JAX and torch."""

import importlib

import numpy as np
import pytest

from attention_xp.linear import LinearState, linear_attention, linear_attention_vjp, performer_features
from tests._backends import to_numpy
from tests._inputs import normal
from tests._quick import some_rare
from tests.linear._cases import PARTS, RULES, inputs, state

# Two chunks, the second of which is not full.
CALLS = {rule: inputs(rule, S=6) | {"feature_map": None} for rule in RULES} | {
    "elu": inputs("linear", S=6) | {"is_causal": True},
    "not causal": inputs("linear", S=6),
    "state": inputs("gated_delta", S=6) | {"state": state(), "feature_map": None, "normalize": False},
}
calls = pytest.mark.parametrize("given", some_rare(CALLS, PARTS.__contains__))


def with_positions(library, given):
    """A function of the arrays of a call, and the arrays."""
    names = [name for name, x in given.items() if isinstance(x, np.ndarray)]
    start = list(given.get("state", ()))

    def function(*xs):
        keywords = given | dict(zip(names, xs, strict=False))
        if start:
            keywords["state"] = LinearState(*xs[len(names) :])
        output, after = linear_attention(**keywords, return_state=True, chunk_size=4)
        return output, after.memory

    def with_gradient(*xs):
        keywords = given | dict(zip(names, xs, strict=False))
        if start:
            keywords["state"] = LinearState(*xs[len(names) :])
        output, vjp = linear_attention_vjp(**keywords, chunk_size=4)
        return output, *(x for x in vjp(output)[:5] if x is not None)

    return function, with_gradient, [given[name] for name in names] + start


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        desired = to_numpy(other)
        np.testing.assert_allclose(to_numpy(one), desired, rtol=1e-4, atol=1e-4 * (1.0 + np.max(np.abs(desired))))


def versions(library, arrays):
    """Two versions of each array, stacked along a new first axis."""
    return [library.array(np.stack([x, 0.5 * x])) for x in arrays]


def one_by_one(function, stacked):
    outcomes = [function(*(x[i] for x in stacked)) for i in range(2)]
    return [np.stack([to_numpy(x) for x in parts]) for parts in zip(*outcomes, strict=True)]


@pytest.mark.backends("jax")
@calls
def test_jax(library, given):
    jax = importlib.import_module("jax")
    for function in with_positions(library, given)[:2]:
        arrays = with_positions(library, given)[2]
        made, stacked = [library.array(x) for x in arrays], versions(library, arrays)
        compiled = jax.jit(function)
        assert_same(compiled(*made), function(*made))
        assert_same(jax.jit(jax.vmap(function))(*stacked), one_by_one(compiled, stacked))


@pytest.mark.backends("jax")
def test_jax_gradient_inside_jit_and_vmap(library):
    jax = importlib.import_module("jax")
    function, _, arrays = with_positions(library, CALLS["gated_delta"])
    stacked = versions(library, arrays)
    grad = jax.grad(lambda *xs: (function(*xs)[0] ** 2).sum(), argnums=tuple(range(len(arrays))))
    assert_same(jax.jit(jax.vmap(grad))(*stacked), one_by_one(grad, stacked))


@pytest.mark.backends("jax")
def test_jax_loops_inside_the_program(library):
    """The program does not grow with the length, and compiles once for each kind of call."""
    jax = importlib.import_module("jax")

    def lines(S):
        function, _, arrays = with_positions(library, inputs("gated_delta", S=S) | {"feature_map": None})
        return len(str(jax.make_jaxpr(function)(*(library.array(x) for x in arrays))).splitlines())

    assert abs(lines(4096) - lines(64)) < 5  # wrapped a little differently


@pytest.mark.backends("torch")
@calls
def test_torch_vmap(library, given):
    vmap = importlib.import_module("torch").func.vmap
    for function in with_positions(library, given)[:2]:
        stacked = versions(library, with_positions(library, given)[2])
        assert_same(vmap(function)(*stacked), one_by_one(function, stacked))


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    "name",
    # The rest are parts of these.
    some_rare({n: n for n in ("elu", "not causal", "gated by head", "delta", "state")}, lambda name: name == "elu"),
)
def test_torch_compile(library, name):
    torch = importlib.import_module("torch")
    *functions, arrays = with_positions(library, CALLS[name])
    made = [library.array(x) for x in arrays]
    for function in functions:
        torch.compiler.reset()
        assert_same(torch.compile(function, fullgraph=True, backend="eager")(*made), function(*made))


@pytest.mark.backends("torch")
def test_torch_gradient_inside_vmap_and_compile(library):
    torch = importlib.import_module("torch")
    function, _, arrays = with_positions(library, CALLS["gated_delta"])
    stacked = versions(library, arrays)
    grad = torch.func.grad(lambda *xs: (function(*xs)[0] ** 2).sum(), argnums=tuple(range(len(arrays))))
    assert_same(torch.func.vmap(grad)(*stacked), one_by_one(grad, stacked))
    compiled = torch.compile(function, fullgraph=True, backend="eager")

    def slopes(f):
        leaves = [library.array(x).requires_grad_() for x in arrays]
        return torch.autograd.grad((f(*leaves)[0] ** 2).sum(), leaves)

    assert_same(slopes(compiled), slopes(function))


@pytest.mark.backends("jax", "torch")
def test_a_feature_map_made_before_may_be_used_inside(library):
    xp = library.namespace()
    phi = performer_features(8, 12, rng=0, xp=xp, dtype="float32")
    x = library.array(normal(2, 9, 8))

    def function(x):
        return linear_attention(x, x, x, feature_map=phi, is_causal=True, chunk_size=4)

    compiled = (
        importlib.import_module("jax").jit(function)
        if library.like("jax")
        else importlib.import_module("torch").compile(function, fullgraph=True, backend="eager")
    )
    assert_same([compiled(x)], [function(x)])
