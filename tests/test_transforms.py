"""Compiling, mapping and tracing: every numerical function inside the transformations of its library."""

import importlib

import numpy as np
import pytest

import attention_xp as ax
from tests._backends import to_numpy
from tests._inputs import inputs, normal

QKV = inputs((2, 4, 5, 8), (2, 2, 7, 8))
X = normal(2, 5, 8)
KEEP = normal(2, 1, 5, 7) > -0.5
POSITIONS = np.random.default_rng(0).integers(0, 60, (2, 2, 5))


def every_option(q, k, v, mask, bias, sinks, lengths):
    """Attention with all options that are arrays, and all that are not."""
    return ax.flash_attention(
        q, k, v, mask, 0.5, rng=1, bias=bias, sinks=sinks, is_causal=True, window=(4, 1), query_offset=lengths,
        query_lengths=lengths, key_lengths=lengths, scale=0.5, softcap=2.0, return_lse=True,
        score_mod=lambda score, b, h, q_idx, kv_idx: 0.5 * score,
    )  # fmt: skip


def with_params(x, *params):
    """Multi-head attention with projections and biases."""
    return ax.multi_head_self_attention(x, 2, 8, params=ax.MultiHeadParams(*params))


def every_rotary_option(x, positions):
    """Rotary positions of two axes, scaled."""
    return ax.rotary_embedding(x, positions, base=100.0, sections=(2, 2), axial=True, scaling=ax.YarnScaling(4.0, 16))


def rotary_scaling(x, positions):
    """Rotary positions under the scalings that look at the largest."""
    dynamic = ax.rotary_embedding(x, positions, scaling=ax.DynamicNTKScaling(2.0, 16))
    return dynamic, ax.rotary_embedding(x, positions, scaling=ax.LongRopeScaling([1.0] * 4, [4.0] * 4, 16))


def rotary_rows(x, positions, table):
    """Rotary positions with cosines and sines from a table."""
    cache = ax.RotaryCache(table, 0.5 * table)
    return ax.rotary_embedding(x, positions, sections=(1, 3), cache=cache), ax.rotary_embedding(x, cache=cache)


CALLS = {
    "scaled_dot_product_attention": (ax.scaled_dot_product_attention, QKV),
    "no weights": (lambda q, k, v: ax.scaled_dot_product_attention(q, k, v, return_weights=False)[0], QKV),
    "flash_attention": (ax.flash_attention, QKV),
    "log-sum-exp": (lambda q, k, v: ax.flash_attention(q, k, v, return_lse=True), QKV),
    "causal": (lambda q, k, v: ax.flash_attention(q, k, v, is_causal=True, query_offset=2), QKV),
    "tiles": (lambda q, k, v: ax.flash_attention(q, k, v, impl="tiled", tile=(2, 3), return_lse=True), QKV),
    "boolean mask": (ax.scaled_dot_product_attention, (*QKV, KEEP)),
    "float mask": (ax.scaled_dot_product_attention, (*QKV, np.where(KEEP, 0.5, -np.inf))),
    "dropout on weights": (lambda q, k, v: ax.flash_attention(q, k, v, None, 0.5, rng=3), QKV),
    "every option": (every_option, (*QKV, KEEP, normal(4, 5, 7), normal(4), np.asarray([3, 5]))),
    "self_attention": (lambda x: ax.self_attention(x, 8), (X,)),
    "cross_attention": (lambda x, context: ax.cross_attention(x, context, 8), (X, normal(2, 7, 8))),
    "multi_head_attention": (lambda x, y: ax.multi_head_attention(x, y, y, 2, 8), (X, normal(2, 7, 8))),
    "multi-head params": (with_params, (X, *(normal(8, 8, seed=i) for i in range(4)), normal(8))),
    "softmax": (ax.softmax, (X,)),
    "layer_normalization": (ax.layer_normalization, (X, normal(8), normal(8, seed=1))),
    "dropout": (lambda x: ax.dropout(x, 0.5, rng=3), (X,)),
    "rotary_embedding": (lambda x: ax.rotary_embedding(x, interleaved=True, rotary_dim=6), (X,)),
    "rotary positions": (every_rotary_option, (normal(2, 3, 5, 8), POSITIONS)),
    "rotary scaling": (rotary_scaling, (X, POSITIONS[0])),
    "rotary cache": (rotary_rows, (normal(2, 3, 5, 8), POSITIONS, normal(60, 4))),
    "axial_rotary_embedding": (lambda x: ax.axial_rotary_embedding(x, 1, 5), (X,)),
    "permute_rotary_weights": (lambda w: ax.permute_rotary_weights(w, 2, to="half"), (X,)),
    "create_padding_mask": (lambda t: ax.create_padding_mask(t, dtype="float32"), (np.asarray([[1, 0], [2, 3]]),)),
}

calls = pytest.mark.parametrize(("function", "arguments"), CALLS.values(), ids=CALLS)


def results(outcome):
    """A result, or several, as NumPy arrays."""
    return [to_numpy(x) for x in (outcome if isinstance(outcome, tuple) else (outcome,))]


def assert_same(actual, expected):
    """Compare results of two ways to call a function."""
    for one, other in zip(results(actual), results(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def mapped(library, arguments):
    """Three different versions of each argument, stacked along a new first axis."""
    versions = [np.stack([x if x.dtype.kind != "f" else x * factor for factor in (1.0, 0.5, -2.0)]) for x in arguments]
    return [library.array(x) for x in versions]


def one_by_one(function, stacked):
    """Call a function for every version by itself."""
    outcomes = [results(function(*(x[i] for x in stacked))) for i in range(3)]
    return tuple(np.stack(parts) for parts in zip(*outcomes, strict=True))


@pytest.mark.backends("jax")
@calls
def test_jax_jit(library, function, arguments):
    jit, made = importlib.import_module("jax").jit, [library.array(x) for x in arguments]
    assert_same(jit(function)(*made), function(*made))


@pytest.mark.backends("jax")
@calls
def test_jax_vmap(library, function, arguments):
    vmap, stacked = importlib.import_module("jax").vmap, mapped(library, arguments)
    assert_same(vmap(function)(*stacked), one_by_one(function, stacked))


@pytest.mark.backends("torch")
@calls
def test_torch_compile(library, function, arguments):
    torch, made = importlib.import_module("torch"), [library.array(x) for x in arguments]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert_same(compiled(*made), function(*made))


@pytest.mark.backends("torch")
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"softcap": 2.0}], ids=str)
def test_torch_compile_with_sizes_that_change(library, options):
    torch = importlib.import_module("torch")
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: ax.flash_attention(x, x, x, **options), fullgraph=True, backend="eager", dynamic=True
    )
    for length in (5, 9, 4):
        x = library.array(normal(2, 4, length, 8))
        assert_same(compiled(x), ax.flash_attention(x, x, x, **options))


@pytest.mark.backends("torch")
@calls
def test_torch_vmap(library, function, arguments):
    vmap, stacked = importlib.import_module("torch").func.vmap, mapped(library, arguments)
    assert_same(vmap(function)(*stacked), one_by_one(function, stacked))


@pytest.mark.backends("jax")
@pytest.mark.parametrize("kind", ["key", "PRNGKey"])
def test_a_jax_key_may_be_traced(library, kind):
    jax, made = importlib.import_module("jax"), [library.array(x) for x in QKV]

    def attend(key):
        return ax.flash_attention(*made, None, 0.5, rng=key)

    key = getattr(jax.random, kind)(3)
    assert_same(jax.jit(attend)(key), attend(key))
    keys = jax.random.split(key, 2)
    first, second = jax.vmap(attend)(keys)
    assert_same(first, attend(keys[0]))
    assert_same(second, attend(keys[1]))


@pytest.mark.backends("jax")
def test_gradients_inside_jit_and_vmap(library):
    jax, stacked = importlib.import_module("jax"), mapped(library, QKV)

    def loss(q, k, v):
        return (ax.flash_attention(q, k, v, is_causal=True, query_offset=2) ** 2).sum()

    grad = jax.grad(loss, argnums=(0, 1, 2))
    assert_same(jax.jit(jax.vmap(grad))(*stacked), one_by_one(grad, stacked))


@pytest.mark.backends("torch")
def test_gradients_inside_vmap(library):
    func, stacked = importlib.import_module("torch").func, mapped(library, QKV)

    def loss(q, k, v):
        return (ax.flash_attention(q, k, v, is_causal=True, query_offset=2) ** 2).sum()

    grad = func.grad(loss, argnums=(0, 1, 2))
    assert_same(func.vmap(grad)(*stacked), one_by_one(grad, stacked))


@pytest.mark.backends("torch")
def test_gradients_of_a_compiled_function(library):
    torch = importlib.import_module("torch")
    compiled = torch.compile(ax.flash_attention, fullgraph=True, backend="eager")

    def slopes(function):
        made = [library.array(x).requires_grad_() for x in QKV]
        return torch.autograd.grad((function(*made) ** 2).sum(), made)

    assert_same(slopes(compiled), slopes(ax.flash_attention))


@pytest.mark.backends("jax")
def test_errors_come_while_tracing(library):
    jax = importlib.import_module("jax")
    q, k = library.array(normal(2, 5, 8)), library.array(normal(2, 5, 4))
    with pytest.raises(ValueError, match="key has width 4 but query has width 8"):
        jax.jit(ax.flash_attention)(q, k, k)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("name", ["positional_encoding", "create_causal_mask", "alibi_slopes"])
def test_creation_inside_torch_compile(library, name):
    torch, sizes = importlib.import_module("torch"), (5, 8) if name == "positional_encoding" else (5,)

    def create(x):
        return x + getattr(ax, name)(*sizes, xp=torch, dtype=torch.float32, device=x.device)

    x = library.array(np.zeros(()))
    assert_same(torch.compile(create, fullgraph=True, backend="eager")(x), create(x))
