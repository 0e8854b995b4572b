"""The signature and the numbers of ``jax.nn.dot_product_attention``, which is the judge."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_xp.interop.flax import attention_fn
from attention_xp.interop.jax import dot_product_attention

pytestmark = [pytest.mark.backends("jax"), pytest.mark.with_nan]
own = jax.nn.dot_product_attention

B, T, S, N, K, H = 2, 6, 8, 4, 2, 8
TOLERANCES = {"float32": 3e-6, "float64": 3e-6, "float16": 4e-3, "bfloat16": 3e-2}


def inputs(rng, dtype="float32", sizes=(B, T, S, N, K, H)):
    b, t, s, n, k, h = sizes
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((b, t, n, h), (b, s, k, h), (b, s, k, h))]


def kind_of_call(rng):
    """Which options are given, and the window: each kind is compiled once."""
    names = ["bias", "mask", "scale", "is_causal", "query_seq_lengths", "key_value_seq_lengths", "local_window_size"]
    names = [name for name in names if rng.random() < 0.4]
    n = rng.integers
    lowest = 0 if "is_causal" in names else -2
    return names, int(n(0, 4)) if n(3) == 0 else (int(n(lowest, 5)), int(n(lowest, 5))), [None, "xla"][n(2)]


def options(rng, names, window, implementation):
    """Return options of a kind, with other numbers in each call."""
    n = rng.integers
    drawn = {
        "bias": lambda: np.where(rng.random((B, N, T, S)) < 0.1, -np.inf, rng.standard_normal((B, N, T, S))),
        "mask": lambda: rng.random((1, N, T, S)) < 0.6,
        "scale": lambda: float(rng.standard_normal()),
        "is_causal": lambda: True,
        "query_seq_lengths": lambda: n(0, T + 3, B).astype("int32"),
        "key_value_seq_lengths": lambda: n(0, S + 3, B).astype("int32"),
        "local_window_size": lambda: window,
    }
    return {"implementation": implementation} | {name: drawn[name]() for name in names}


def judged(*arrays, **options):
    """What the original gives, with the one difference: a row that attends nothing is 0, and minus infinity."""
    output, residual = own(*arrays, **options | {"implementation": None}, return_residual=True)
    is_empty = ~(residual > -1e38)
    return jnp.where(is_empty[..., None], 0, output), jnp.where(is_empty, -jnp.inf, residual), is_empty


def assert_alike(ours, theirs, dtype="float32"):
    for actual, expected in zip(ours, theirs, strict=False):
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        near = np.testing.assert_allclose
        near(*(np.asarray(a, "float64") for a in (actual, expected)), atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


def test_signature():
    mine, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (dot_product_attention, own)
    )
    assert mine == theirs


@pytest.mark.parametrize("seed", range(16))
def test_random_calls(seed):
    rng = np.random.default_rng(seed)
    kind, filled = kind_of_call(rng), 0
    for _ in range(20):
        arrays, given = inputs(rng), options(rng, *kind)
        output, residual, is_empty = judged(*arrays, **given)
        filled += not is_empty.all()
        assert_alike(dot_product_attention(*arrays, **given, return_residual=True), (output, residual))
    assert filled > 10


@pytest.mark.parametrize("window", [1, (0, 2), (-1, 3), (4, -2), (2, -1), (-2, -1)], ids=str)
def test_windows(window):
    """Bounds may be negative, so that a window lies beside the query."""
    arrays = inputs(np.random.default_rng(7))
    output, residual, is_empty = judged(*arrays, local_window_size=window)
    assert is_empty.all() == (window == (-2, -1))
    assert_alike(dot_product_attention(*arrays, local_window_size=window, return_residual=True), (output, residual))


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_the_formula_has_all_scores_in_memory(implementation):
    def attend(x):
        return dot_product_attention(x, x, x, implementation=implementation)

    program = str(jax.make_jaxpr(attend)(jnp.ones((1, 2000, 2, 8), jnp.float32)))
    assert ("2000,2000]" in program) == (implementation == "xla")


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_dtypes(dtype):
    rng = np.random.default_rng(1)
    arrays, bias = inputs(rng, dtype), jnp.asarray(rng.standard_normal((N, 1, S)), dtype)
    given = {"bias": bias, "is_causal": True}
    assert_alike(dot_product_attention(*arrays, **given, return_residual=True), judged(*arrays, **given), dtype)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_axes_that_are_missing_in_front(axes):
    rng = np.random.default_rng(2)
    q, k, v = (a[0] for a in inputs(rng))
    arrays = [q[0, 0] if axes == 1 else q[0] if axes == 2 else q, k, v]
    if axes < 3:
        arrays = [arrays[0], k[:, :1], v[:, :1]]
    given = {"mask": rng.random(S) < 0.7, "bias": np.arange(S)}
    assert_alike(dot_product_attention(*arrays, **given, return_residual=True), judged(*arrays, **given))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (B, 1, 1, S), (1, N, T, 1), (N, T, S), (T, S), (S,)], ids=str)
@pytest.mark.parametrize("name", ["mask", "bias"])
def test_what_broadcasts(name, shape):
    rng = np.random.default_rng(3)
    arrays, given = inputs(rng), {name: rng.random(shape) < 0.7}
    assert_alike(dot_product_attention(*arrays, **given, return_residual=True), judged(*arrays, **given))


@pytest.mark.parametrize("sizes", [(B, T, S, N, K, H), (1, 100, 100, 2, 1, H)], ids=["formula", "tiles"])
def test_jit_grad_and_vmap(sizes):
    b, t, s, n, *_ = sizes
    rng = np.random.default_rng(4)
    arrays = inputs(rng, sizes=sizes)
    arrays += [jnp.asarray(rng.standard_normal((n, 1, s)), "float32"), jnp.asarray(0.4)]
    kept, lengths = rng.random((3, t, s)) < 0.7, jnp.full(b, s - 1, jnp.int32)

    def loss(attend):
        def of(kept, q, k, v, bias, scale):
            output, residual = attend(
                q, k, v, bias, kept | np.eye(t, s, dtype=bool), scale=scale, key_value_seq_lengths=lengths,
                local_window_size=(s, 2), return_residual=True,
            )  # fmt: skip
            return (output**2).sum() + residual.sum()  # whose gradient is none

        of_all = jax.vmap(jax.value_and_grad(of, argnums=(1, 2, 3, 4, 5)), in_axes=(0, *(None,) * 5))
        return jax.tree.leaves(jax.jit(of_all)(kept, *arrays))

    for actual, expected in zip(loss(dot_product_attention), loss(own), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_nothing_excluded_comes_through():
    q, k, v = inputs(np.random.default_rng(5))
    bad = [a.at[:, -1].set(jnp.nan) for a in (k, v)]
    kept = np.arange(S) < S - 1
    assert_alike([dot_product_attention(q, *bad, mask=kept)], [own(q, k, v, mask=kept)])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"value": (B, S, K, H + 1)}, "value"),
        ({"query": (B, T, 3, H)}, "N a multiple of K"),
        ({"query": (1, T, N, H)}, "query does not fit key"),
        ({"query": (1, B, T, N, H)}, "query must have at most 4 axes"),
        ({"mask": np.ones((T, S))}, "mask must be boolean"),
        ({"mask": np.ones((3, T, S), bool)}, "mask does not broadcast"),
        ({"bias": np.ones((3, T, S))}, "bias does not broadcast"),
        ({"query_seq_lengths": np.ones(B, "int64")}, "query_seq_lengths must be int32"),
        ({"key_value_seq_lengths": np.ones(1, "int32")}, "key_value_seq_lengths must be int32"),
        ({"implementation": "mosaic"}, "implementation"),
        ({"implementation": "cudnn"}, "CUDA"),
    ],
)
def test_what_the_original_refuses(change, named):
    given = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, H)} | change
    given = {name: jnp.ones(a) if isinstance(a, tuple) else a for name, a in given.items()}
    with pytest.raises(ValueError, match=named):
        dot_product_attention(**given)


def test_strict_promotion_of_dtypes():
    q, k, v = inputs(np.random.default_rng(0), "float64")
    bias, scale = jnp.ones((B, N, T, S)), jnp.asarray(0.5, jnp.float64)
    given = {"bias": bias, "scale": scale, "is_causal": True, "local_window_size": (2, 0)}
    expected = dot_product_attention(q, k, v, **given)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        np.testing.assert_array_equal(dot_product_attention(q, k, v, **given), expected)
        assert attention_fn(q, k, v, bias, deterministic=True).dtype == q.dtype


def test_another_dtype():
    x = jnp.ones((B, T, N, H))
    with pytest.raises(ValueError, match="value must have the dtype of key"):
        dot_product_attention(x, x, x.astype("float16"))
