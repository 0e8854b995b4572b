"""Derivatives of the tiled kernel inside the transformations of its library, and the memory they take."""

import importlib
from functools import partial

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention, merge_attention
from attention_xp.masks import BlockMask, CausalMask, FunctionMask
from tests._autodiff import check
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests._quick import some_rare
from tests.biases._cases import GaussianBias
from tests.score_mods import bent

Q, K, V = inputs((2, 4, 5, 4), (2, 2, 7, 4))
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
OPTIONS = {
    "none": {},
    "causal": {"is_causal": True, "query_offset": 2},
    "mask": {"mask": normal(2, 1, 5, 7) > -0.5},
    "lengths": {"key_lengths": np.asarray([7, 3]), "query_offset": np.asarray([0, 2]), "window": 3},
    "soft cap, bias, sinks": {"softcap": 1.0, "bias": normal(4, 5, 7), "sinks": normal(4)},
    "dropout": {"dropout_rate": 0.5, "rng": 3},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def losses(library, options, tile=(2, 3)):
    """Losses on the tiled and on the dense kernel, of query, key and value."""
    given = {n: library.array(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}

    def loss(impl):
        return lambda q, k, v: (flash_attention(q, k, v, impl=impl, tile=tile, **given) ** 2).sum()

    return loss("tiled"), loss("dense")


def assert_same(actual, expected):
    """Compare arrays, or tuples of them."""
    actual, expected = (x if isinstance(x, tuple | list) else (x,) for x in (actual, expected))
    for one, other in zip(actual, expected, strict=True):
        if isinstance(one, tuple):
            assert_same(one, other)
        else:
            np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-4, atol=1e-5)


TOGETHER = {  # few calls with all options: every tile and option is compiled for itself
    "none": {},
    "all of a batch": OPTIONS["causal"] | OPTIONS["mask"] | OPTIONS["soft cap, bias, sinks"],
    "of each item": OPTIONS["lengths"] | OPTIONS["dropout"],
}


@pytest.mark.backends("torch")
@pytest.mark.parametrize("options", some_rare(TOGETHER, lambda name: name == "none"))
def test_torch_compile(library, options):
    torch = importlib.import_module("torch")
    tiled, dense = losses(library, options, tile=(3, 4))
    torch.compiler.reset()

    def slopes(function):
        made = [library.array(x).requires_grad_() for x in (Q, K, V)]
        return torch.autograd.grad(function(*made), made)

    assert_same(slopes(torch.compile(tiled, fullgraph=True, backend="aot_eager")), slopes(dense))


@pytest.mark.backends("torch")
@options
def test_torch_func(library, options):
    func = importlib.import_module("torch").func
    tiled, dense = losses(library, options)
    made = [library.array(x) for x in (Q, K, V)]
    assert_same(func.grad(tiled, argnums=(0, 1, 2))(*made), func.grad(dense, argnums=(0, 1, 2))(*made))
    stacked = [library.array(np.stack([x, 0.5 * x, -x])) for x in (Q, K, V)]
    each = func.vmap(func.grad(tiled, argnums=(0, 1, 2)))(*stacked)
    assert_same(each, func.vmap(func.grad(dense, argnums=(0, 1, 2)))(*stacked))


@pytest.mark.backends("torch")
def test_torch_func_maps_what_a_call_holds(library):
    """A mask, an offset and a function that captures a mapped tensor."""
    func = importlib.import_module("torch").func
    made = [library.array(x) for x in (Q, K, V)]

    def slope(mask, offset, factor, impl):
        def loss(q):
            output = flash_attention(
                q, *made[1:], mask, is_causal=True, query_offset=offset, impl=impl, tile=(2, 3),
                score_mod=lambda score, b, h, q_idx, kv_idx: factor * score,
            )  # fmt: skip
            return (output**2).sum()

        return func.grad(loss)(made[0])

    mapped = (
        library.array(normal(3, 5, 7) > 0),
        library.array(np.asarray([[0, 1], [2, 3], [4, 5]])),
        library.array(normal(3)),
    )
    each, expected = (
        func.vmap(lambda *a, impl=impl: slope(*a, impl), in_dims=(0, 0, 0))(*mapped) for impl in ("tiled", "dense")
    )
    assert_same(each, expected)


@FORWARD_MODE
@pytest.mark.backends("torch")
@options
def test_torch_forward_mode_and_hessian(library, options):
    func = importlib.import_module("torch").func
    tiled, dense = losses(library, options)
    made = [library.array(x) for x in (Q, K, V)]
    directions = tuple(library.array(normal(*x.shape, seed=9)) for x in (Q, K, V))
    assert_same(func.jvp(tiled, tuple(made), directions)[1], func.jvp(dense, tuple(made), directions)[1])
    small = [x[:1, :2, :3, :2] for x in made[:1]] + [x[:1, :1, :3, :2] for x in made[1:]]
    if not any(isinstance(x, np.ndarray) for x in options.values()):
        assert_same(func.hessian(tiled)(*small), func.hessian(dense)(*small))


@pytest.mark.backends("torch")
def test_torch_saves_memory_linear_in_the_lengths(library):
    torch = importlib.import_module("torch")
    made = [library.array(x).requires_grad_() for x in inputs((1, 2, 512, 4))]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        flash_attention(*made, is_causal=True, impl="tiled")
    assert 0 < sum(saved) <= 6 * made[0].numel()


@pytest.mark.backends("jax")
def test_jax_differentiates_what_functions_and_biases_hold(library):
    """A mask function may look at it too, which changes nothing; with a soft cap before and a bias behind."""

    def attend(q, table, slopes, width, impl):
        output = flash_attention(
            q, *(library.array(x, q.dtype.name) for x in (K, V)), impl=impl, tile=(2, 3), softcap=2.0, query_offset=2,
            mask=CausalMask() | FunctionMask(lambda b, h, q_idx, kv_idx: q_idx + kv_idx < jnp.ceil(9.0 * abs(table[0])).astype(q_idx.dtype)),
            score_mod=lambda score, b, h, q_idx, kv_idx: jnp.sin(score) * table[abs(q_idx - kv_idx)] + slopes[h] * score,
            bias=GaussianBias(width),
        )  # fmt: skip
        return jnp.sin(output).sum()

    jax = importlib.import_module("jax")
    jnp = jax.numpy
    arrays = [library.array(x, library.dtypes()[-1]) for x in (Q, normal(9), normal(4), 1.0 + normal(4) ** 2)]
    directions = [jnp.cos(x) for x in arrays]

    @partial(jax.jit, static_argnums=0)
    def derivatives(impl, *arrays):
        """Gradients; those of a gradient, forward and reverse; of mapped calls where some arrays are mapped."""
        slopes = jax.grad(partial(attend, impl=impl), argnums=range(4))
        mapped = jax.vmap(slopes, (0, None, 0, None))

        def along(*arrays):
            return sum((x * d).sum() for x, d in zip(slopes(*arrays), directions, strict=True))

        q, table, factors, width = arrays
        return (
            slopes(*arrays),
            jax.grad(along, argnums=range(4))(*arrays),
            jax.jvp(slopes, arrays, tuple(directions))[1],
            mapped(jnp.stack([q, -q]), table, jnp.stack([factors, 0.5 * factors]), width),
        )

    found, expected = (jax.tree.leaves(derivatives(impl, *arrays)) for impl in ("tiled", "dense"))
    assert_same(tuple(found), tuple(expected))


@pytest.mark.backends("jax")
def test_jax_keeps_no_scores_of_what_functions_capture(library):
    jax, length = importlib.import_module("jax"), 300

    def loss(x, factor, width):
        output = flash_attention(
            x, x, x, impl="tiled", tile=(32, 32), bias=GaussianBias(width),
            score_mod=lambda score, b, h, q_idx, kv_idx: factor[0] * score, mask=FunctionMask(lambda b, h, q, k: q > k),
        )  # fmt: skip
        return output.sum()

    arrays = [library.array(x) for x in (normal(1, 2, length, 4), normal(1), normal(2))]
    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * length**2 / 2


@pytest.mark.backends("torch")
def test_torch_differentiates_what_score_mod_captures(library):
    torch = importlib.import_module("torch")

    def slope(impl):
        made = [library.array(x) for x in (Q, K, V)]
        factor = library.array(np.asarray(0.7)).requires_grad_()
        output = flash_attention(
            *made, impl=impl, tile=(2, 3), score_mod=lambda score, b, h, q_idx, kv_idx: factor * score
        )
        return torch.autograd.grad((output**2).sum(), [factor])

    assert_same(slope("tiled"), slope("dense"))


@FORWARD_MODE
@pytest.mark.backends("torch", "jax")
def test_score_mod(library, impl):
    score_mod = bent(library.namespace())
    check(library, lambda q, k, v: flash_attention(q, k, v, score_mod=score_mod, impl=impl, tile=(2, 3)), Q, K, V)


@FORWARD_MODE
@pytest.mark.backends("torch", "jax")
def test_parts_of_the_keys(library, impl):
    def attend(q, k, v):
        parts = [
            flash_attention(q, k[..., part, :], v[..., part, :], return_lse=True, impl=impl, tile=(2, 3))
            for part in (slice(0, 3), slice(3, 7))
        ]
        return merge_attention(*zip(*parts, strict=True))

    check(library, attend, Q, K, V)


@FORWARD_MODE
@pytest.mark.backends("torch", "jax")
def test_gradients_are_differentiable_themselves(library, impl):
    gradient = normal(2, 4, 5, 4, seed=3)

    def slopes(q, k, v):
        return attention_vjp(q, k, v, impl=impl, tile=(2, 3))[1](library.array(gradient, library.dtypes()[-1]))[:3]

    if library.like("torch"):
        autograd = importlib.import_module("torch").autograd
        made = [library.array(x, "float64").requires_grad_() for x in (Q, K, V)]
        assert autograd.gradcheck(slopes, made, fast_mode=True)


@pytest.mark.backends("jax")
@options
def test_jax_transformations_of_the_vjp(library, options):
    jax = importlib.import_module("jax")
    given = {n: library.array(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}

    def slopes(q, k, v, g, impl):
        return tuple(attention_vjp(q, k, v, impl=impl, tile=(2, 3), **given)[1](g)[:3])

    made = [library.array(x) for x in (Q, K, V, normal(2, 4, 5, 4, seed=3))]
    compiled = jax.jit(slopes, static_argnums=4)
    expected = compiled(*made, "dense")
    assert_same(compiled(*made, "tiled"), expected)
    stacked = [library.array(np.stack([x, x])) for x in made]
    mapped = jax.jit(jax.vmap(lambda *a: slopes(*a, "tiled")))(*stacked)
    assert_same(tuple(x[1] for x in mapped), expected)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window": 40}])
def test_jax_chooses_one_tile_for_what_is_written_down_for_it(library, options):
    import jax.numpy as jnp  # noqa: PLC0415

    query, key = (jnp.asarray(np.random.default_rng(0).standard_normal((1, length, 4))) for length in (130, 1100))
    options = options | {
        "score_mod": lambda score, b, h, q_idx, kv_idx: jnp.sin(score),
        "query_offset": 900,
        "mask": FunctionMask(lambda b, h, q, k: (q + k) % 3 > 0) & BlockMask(np.eye(11, dtype=bool), 100),
    }
    found, expected = (attention_vjp(query, key, key, impl=impl, **options) for impl in ("tiled", "dense"))
    for x, y in zip((found[0], *found[1](query)[:3]), (expected[0], *expected[1](query)[:3]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
