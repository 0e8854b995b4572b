"""Modules of Flax with our attention and with their own, which is the judge."""

import inspect
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention_xp import multi_head_attention
from attention_xp.interop.flax import attention_fn, multi_head_params

pytestmark = pytest.mark.backends("jax")

B, S, H, D = 2, 6, 4, 16
ORIGINALS = [nn.dot_product_attention, nnx.dot_product_attention]
LIBRARIES = ["linen", "nnx"]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def near(actual, expected, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def masks():
    """As Flax makes them: floats of 0 and 1, in which no row is empty."""
    x = jnp.ones((B, S))
    tokens = jnp.arange(S) < jnp.asarray([[S], [S - 2]])
    causal, padding = nn.make_causal_mask(x), nn.make_attention_mask(x, tokens)
    return {"none": None, "causal": causal, "both": nn.combine_masks(causal, padding), "int": padding.astype(int)}


MASKS = masks()


@pytest.fixture(params=LIBRARIES)
def both(request):
    """Two functions of parameters, input and options of the call: a module with its own attention and with ours."""

    def apply(given, **options):
        options = {"decode": False} | options
        if request.param == "linen":
            module = nn.MultiHeadDotProductAttention(H, **given, **options)
            variables = nn.MultiHeadDotProductAttention(H).init(jax.random.key(0), normal(1, B, S, D))
            return lambda p, x, **call: module.apply({"params": p}, x, **call), variables["params"]
        module = nnx.MultiHeadAttention(H, D, rngs=nnx.Rngs(0), **given, **options)
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        return lambda p, x, **call: nnx.merge(graph, p, rest)(x, **call), params

    def pair(**options):
        own, params = apply({}, **options)
        ours, _ = apply({"attention_fn": attention_fn}, **options)
        return own, ours, params

    pair.library = request.param
    return pair


def test_signature():
    mine = inspect.signature(attention_fn).parameters
    for original in ORIGINALS:
        theirs = inspect.signature(original).parameters
        assert list(theirs)[:12] == list(mine)[:12]
        assert all(mine[name].default == p.default for name, p in theirs.items())


@pytest.mark.parametrize("mask", ["both", "int"])
def test_module_and_its_gradients(both, mask):
    own, ours, params = both()
    x = normal(2, B, S, D)

    def value_and_gradients(apply):
        def loss(p, x):
            y = apply(p, x, mask=MASKS[mask])
            return (y**2).sum(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    near(value_and_gradients(ours), value_and_gradients(own), 1e-5)


@pytest.mark.parametrize("mask", ["none", "floats"])
def test_decoding_with_a_cache(mask):
    """The mask that a cache brings is a float of 0 and 1: added to the scores, it would exclude nothing."""
    x = normal(3, B, S, D)
    given = {"mask": None if mask == "none" else jnp.ones((B, 1, 1, S)).at[1, ..., 1].set(0.0)}
    linen, grouped = [], []
    for options in ({}, {"attention_fn": attention_fn}):
        module = nn.MultiHeadDotProductAttention(H, decode=True, **options)
        variables = module.init(jax.random.key(0), x)
        step = jax.jit(lambda v, x, module=module: module.apply(v, x, mutable=["cache"], **given))
        for t in range(S):
            y, changed = step(variables, x[:, t : t + 1])
            variables = variables | changed
            linen.append(y)
        module = nnx.MultiHeadAttention(H, D, num_kv_heads=2, decode=True, rngs=nnx.Rngs(0), **options)
        module.init_cache(x.shape)
        step = nnx.jit(lambda module, x: module(x, **given))
        grouped += [step(module, x[:, t : t + 1]) for t in range(S)]
    for steps in (linen, grouped):
        near(steps[S:], steps[:S])


def test_sown_weights(both):
    own, ours, params = both(dropout_rate=0.5, deterministic=True)
    x, call = normal(4, B, S, D), {"mask": MASKS["both"], "sow_weights": True}
    if both.library == "linen":
        (y, sown), (expected, by_own) = (apply(params, x, mutable=["intermediates"], **call) for apply in (ours, own))
        near(sown["intermediates"]["attention_weights"], by_own["intermediates"]["attention_weights"])
        near(y, expected)
        return
    weights = []
    for options in ({"attention_fn": attention_fn}, {}):
        module = nnx.MultiHeadAttention(H, D, decode=False, rngs=nnx.Rngs(0), **options)
        y, sown = nnx.capture(module, nnx.Intermediate)(x, **call)
        weights.append((y, sown["attention_weights"][0]))
    near(*weights)


@pytest.mark.parametrize("is_broadcast", [True, False])
def test_dropout(is_broadcast):
    """With the identity as values, the output is the weights."""
    b, s = 3, 64
    q, k = normal(5, b, s, 2, 8), normal(6, b, s, 2, 8)
    v = jnp.broadcast_to(jnp.eye(s)[None, :, None], (b, s, 2, s)).astype(jnp.float32)
    call = {"dropout_rate": 0.25, "broadcast_dropout": is_broadcast}
    dropped, again, other = (attention_fn(q, k, v, dropout_rng=jax.random.key(seed), **call) for seed in (0, 0, 1))
    near(dropped, again, 0)
    keep = np.asarray(dropped != 0)
    assert abs(keep.mean() - 0.75) < (0.03 if is_broadcast else 0.015)
    assert abs((keep == np.asarray(other != 0)).mean() - 0.625) < 0.03  # 0.75**2 + 0.25**2
    np.testing.assert_allclose(dropped, np.where(keep, attention_fn(q, k, v) / 0.75, 0), rtol=1e-5, atol=1e-7)
    assert all((keep[i, :, h] == keep[0, :, 0]).all() for i in range(b) for h in range(2)) == is_broadcast
    np.testing.assert_array_equal(attention_fn(q, k, v, deterministic=True, **call), attention_fn(q, k, v))


def test_dropout_in_training(both):
    own, ours, params = both(dropout_rate=0.9999, deterministic=False)
    call = {"rngs": {"dropout": jax.random.key(0)} if both.library == "linen" else nnx.Rngs(dropout=0)}
    y = ours(params, normal(7, B, S, D), **call)
    near(y, own(params, normal(7, B, S, D), **call))  # of almost no weight: the bias of the output, which is 0


@pytest.mark.parametrize(
    "change",
    [
        {"bias": normal(8, H, S, S)},
        {"bias": normal(8, B, 1, 1, S).astype(jnp.float16), "mask": MASKS["both"]},
        {"dtype": jnp.float64},
        {"key": normal(9, B, S, H, 8).astype(jnp.bfloat16)},
        {"precision": "highest", "mask": MASKS["causal"]},
        {"precision": ("high", "high"), "bias": normal(8, S)},
        {"promote_dtype": lambda arrays, dtype: [2 * a for a in arrays]},
        {"is_causal": True, "mask": MASKS["int"]},
        {"query": normal(8, 3, H, 8), "key": normal(9, S, H, 8), "value": normal(10, S, H, 5)},
        {
            "value": normal(10, 2, 3, S, H, 8),
            "query": normal(8, 2, 3, S, H, 8),
            "key": normal(9, 2, 3, S, H, 8),
        },
        {"key": normal(9, B, S, 2, 8), "value": normal(10, B, S, 2, 8)},
    ],
    ids="-".join,
)
def test_options(change):
    given = {"query": normal(8, B, S, H, 8), "key": normal(9, B, S, H, 8), "value": normal(10, B, S, H, 8)} | change
    heads = given["key"].shape[-2]
    newer = heads != H or change.keys() & {"promote_dtype", "is_causal"}
    original = nnx.dot_product_attention if newer else nn.dot_product_attention
    near(attention_fn(**given), original(**given), 1e-6)


@pytest.mark.parametrize("is_forced", [True, False])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_softmax_of_other_dtypes(is_forced, dtype):
    """Output and sown weights have the dtypes of linen."""

    class Sown(nn.Module):
        attend: Callable

        def __call__(self, *arrays):
            return self.attend(*arrays, force_fp32_for_softmax=is_forced, module=self)

    arrays = [normal(i, B, S, H, 8).astype(dtype) for i in range(3)]
    by_own, ours = (
        Sown(f).apply({}, *arrays, mutable="intermediates") for f in (nn.dot_product_attention, attention_fn)
    )
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, ours, by_own)
    assert all(jax.tree.leaves(same)) or (is_forced and dtype == jnp.float64)  # whose weights are float32 there
    expected, _ = Sown(nn.dot_product_attention).apply(
        {}, *(a.astype(jnp.float32) for a in arrays), mutable="intermediates"
    )
    tolerance = 1e-6 if is_forced or dtype == jnp.float64 else 2**-8 if dtype == jnp.bfloat16 else 2**-11
    alone = attention_fn(*arrays, force_fp32_for_softmax=is_forced)
    for actual in (ours[0], alone):
        assert actual.dtype == by_own[0].dtype
        np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=tolerance, atol=1e-6)


def test_precision_of_gradients():
    def loss(q):
        return attention_fn(q, q, q, precision=jax.lax.Precision.HIGHEST).sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((1, 256, 2, 8), jnp.float32)))
    products = program.count("= dot_general[")
    assert products >= 6
    assert program.count("precision=(Precision.HIGHEST") == products


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("einsum_dot_general", jax.lax.dot_general),
        ("qk_attn_weights_einsum", jnp.einsum),
        ("attn_weights_value_einsum", jnp.einsum),
        ("precision", jax.lax.DotAlgorithmPreset.BF16_BF16_F32),
        ("precision", "F16_F16_F32"),
        ("precision", ("high", "highest")),
    ],
)
def test_what_is_refused(name, given):
    x = jnp.ones((B, S, H, 8))
    with pytest.raises(NotImplementedError, match=name):
        attention_fn(x, x, x, **{name: given})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key": jnp.ones((S, H, 8))}, "query, key and value do not fit"),
        ({"value": jnp.ones((B, S + 1, H, 8))}, "do not fit"),
        ({"key": jnp.ones((B, S, 3, 8)), "value": jnp.ones((B, S, 3, 8))}, "H a multiple of Hkv"),
        ({"mask": jnp.ones((3, 1, S, S))}, "mask does not broadcast"),
        ({"dropout_rate": 0.5}, "dropout_rng is required"),
        ({"dropout_rate": 1.5, "dropout_rng": jax.random.key(0)}, "dropout_rate must satisfy"),
    ],
)
def test_what_does_not_fit(change, named):
    x = jnp.ones((B, S, H, 8))
    with pytest.raises(ValueError, match=named):
        attention_fn(**{"query": x, "key": x, "value": x} | change)


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2, "use_bias": False}, {"dtype": jnp.bfloat16}], ids=str)
def test_parameters(options):
    options = {"in_kv_features": 10, "qkv_features": 24, "out_features": 5} | options
    module = nnx.MultiHeadAttention(
        H, D, decode=False, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0), **options
    )
    dtype = options.get("dtype", jnp.float32)
    x, context = normal(11, B, S, D).astype(dtype), normal(12, B, S + 1, 10).astype(dtype)
    params = multi_head_params(module)
    assert (params.b_q is None) == ("use_bias" in options)
    heads = options.get("num_kv_heads", H)
    output, _ = multi_head_attention(x, context, context, H, D, num_kv_heads=heads, params=params)
    near(output, module(x, context), 1e-5 if dtype == jnp.float32 else 3e-2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"normalize_qk": True}, "normalize_qk"),
        ({"out_dot_general": jax.lax.dot_general}, "out_dot_general"),
        ({"attention_fn": print}, "attention_fn"),
    ],
)
def test_parameters_that_do_not_say_all(options, named):
    with pytest.raises(NotImplementedError, match=named):
        multi_head_params(nnx.MultiHeadAttention(H, D, rngs=nnx.Rngs(0), **options))
    with pytest.raises(TypeError, match="MultiHeadDotProductAttention"):
        multi_head_params(nn.MultiHeadDotProductAttention(H))
