"""Keras' own function and layers as the judge, on the backend of this process, and on the others in one process each."""

import inspect
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from attention_xp import multi_head_attention
from attention_xp.interop.keras import dot_product_attention, multi_head_params

# Keras asks torch for an array as NumPy 1 did.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
BACKEND = keras.backend.backend()
B, T, S, N, K, H = 2, 6, 8, 4, 2, 8
own = keras.ops.dot_product_attention


def inputs(rng, heads=K):
    return [
        rng.standard_normal(shape).astype("float32") for shape in ((B, T, N, H), (B, S, heads, H), (B, S, heads, H))
    ]


def judged(query, key, value, bias=None, mask=None, is_causal=False, **options):
    """What Keras gives, in what all of its backends honour: as many heads, and one of bias and mask; NumPy numbers."""
    allowed = np.ones((B, N, T, S), bool) if mask is None else np.broadcast_to(mask != 0, (B, N, T, S))
    if is_causal:
        allowed = np.tril(allowed)
    key, value = (np.repeat(a, N // a.shape[2], axis=2) for a in (key, value))
    added = np.where(allowed, 0 if bias is None else bias, -1e30).astype("float32")
    output = ops.convert_to_numpy(own(query, key, value, bias=added, **options))
    return np.where(allowed.any(-1).transpose(0, 2, 1)[..., None], output, 0)


def near(actual, expected, tolerance=3e-6):
    np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif("ATTENTION_XP_KERAS" in os.environ, reason="this is the other process")
@pytest.mark.parametrize("backend", sorted({"numpy", "torch", "jax"} - {BACKEND}))
def test_other_backends(backend):
    """Keras reads its backend once in a process."""
    environment = os.environ | {"KERAS_BACKEND": backend, "ATTENTION_XP_KERAS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]


def test_signature():
    mine, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (dot_product_attention, own)
    )
    assert mine == theirs


@pytest.mark.parametrize("seed", range(8))
def test_random_calls(seed):
    """A seed is a kind of call, which JAX compiles once."""
    rng = np.random.default_rng(seed)
    names, heads = [rng.random() < 0.6 for _ in range(4)], (N, K, 1)[seed % 3]
    for _ in range(25):
        kinds = {
            "bias": rng.standard_normal((1, N, T, S)).astype("float32"),
            "mask": (rng.random((B, 1, T, S)) < 0.6).astype(["bool", "float32", "int32"][seed % 3]),
            "scale": float(rng.standard_normal()),
            "is_causal": True,
        }
        arrays, given = (
            inputs(rng, heads),
            {n: x for (n, x), is_given in zip(kinds.items(), names, strict=True) if is_given},
        )
        near(dot_product_attention(*arrays, **given), judged(*arrays, **given))


@pytest.mark.parametrize("given", [{}, {"is_causal": True}, {"mask": True}, {"bias": True}], ids=str)
def test_as_keras_is_called(given):
    rng = np.random.default_rng(0)
    arrays = inputs(rng, N)
    made = {"mask": rng.random((B, 1, 1, S)) < 0.6, "bias": rng.standard_normal((N, T, S)).astype("float32")}
    given = {name: made.get(name, x) for name, x in given.items()}
    given["mask"] = given["mask"] | (np.arange(S) == 0) if "mask" in given else None
    for flash_attention in (None, False):
        output = dot_product_attention(*arrays, **given, flash_attention=flash_attention)
        assert type(output) is type(own(*arrays))
        near(output, ops.convert_to_numpy(own(*arrays, **given)))


def test_dtypes_promote():
    q, k, v = inputs(np.random.default_rng(1))
    output = dot_product_attention(q.astype("float16"), k.astype("float16"), v, bias=np.arange(S))
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    near(output, judged(q.astype("float16"), k.astype("float16"), v, bias=np.arange(S)), 2e-3)
    narrow = dot_product_attention(*(a.astype("float16") for a in (q, k, v)))
    assert keras.backend.standardize_dtype(narrow.dtype) == "float16"
    near(narrow, judged(q, k, v), 5e-3)


def test_soft_cap():
    """Keras has it on TPU alone: the judge is the bias that makes one score of the other."""
    q, k, v = inputs(np.random.default_rng(2), N)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    near(
        dot_product_attention(q, k, v, attn_logits_soft_cap=0.5),
        judged(q, k, v, bias=0.5 * np.tanh(scores / 0.5) - scores),
    )


def test_functional_model(tmp_path):
    """A model is made of it, saved and read again."""
    rng = np.random.default_rng(3)
    arrays, mask = inputs(rng), rng.random((B, 1, T, S)) < 0.6
    mask[..., 0] = True
    nodes = [keras.Input((None, *a.shape[2:]), dtype="float32") for a in arrays]
    kept = keras.Input((1, None, None), dtype="bool")
    output = dot_product_attention(*nodes, mask=kept, is_causal=True, attn_logits_soft_cap=3.0)
    assert output.shape == (None, None, N, H)
    model = keras.Model([*nodes, kept], output)
    expected = ops.convert_to_numpy(dot_product_attention(*arrays, mask=mask, is_causal=True, attn_logits_soft_cap=3.0))
    model.save(tmp_path / "model.keras")
    for made in (model, keras.models.load_model(tmp_path / "model.keras")):
        near(made([*arrays, mask]), expected)


def test_flash_attention():
    arrays = inputs(np.random.default_rng(4))
    if BACKEND == "torch":
        near(dot_product_attention(*arrays, flash_attention=True), judged(*arrays))
    else:
        with pytest.raises(ValueError, match="fused"):
            dot_product_attention(*arrays, flash_attention=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query": (B, T, H)}, "do not fit"),
        ({"value": (B, S + 1, K, H)}, "expected .B, T, N, H."),
        ({"query": (B, T, 3, H)}, "N a multiple of K"),
        ({"mask": (3, 1, T, S)}, "mask does not broadcast"),
        ({"attn_logits_soft_cap": -1.0}, "attn_logits_soft_cap must be positive"),
    ],
)
def test_what_does_not_fit(change, named):
    given = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, H)} | change
    with pytest.raises(ValueError, match=named):
        dot_product_attention(
            **{name: np.ones(x, "float32") if isinstance(x, tuple) else x for name, x in given.items()}
        )


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(NotImplementedError, match="backend tensorflow"):
        dot_product_attention(*inputs(np.random.default_rng(0)))


def grouped(**options):
    return keras.layers.GroupQueryAttention(head_dim=3, num_query_heads=N, num_key_value_heads=K, **options)


def full(**options):
    return keras.layers.MultiHeadAttention(num_heads=N, key_dim=3, **options)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (full, {}),
        (full, {"value_dim": 5, "output_shape": 7, "use_bias": False}),
        (full, {"dtype": "mixed_float16"}),
        (grouped, {}),
        (grouped, {"use_bias": False}),
    ],
    ids=lambda given: given.__name__ if callable(given) else str(given),
)
def test_parameters(make, options):
    layer = make(bias_initializer="random_normal", **options)
    dtype = layer.compute_dtype
    rng = np.random.default_rng(5)
    x, context = (ops.convert_to_tensor(rng.standard_normal((B, n, d)), dtype) for n, d in ((T, 10), (S, 12)))
    # With scores, it computes the formula: on JAX, Keras' way without fails where values have another width.
    expected, _ = layer(x, context, use_causal_mask=True, return_attention_scores=True)
    params = multi_head_params(layer)
    assert (params.b_o is None) == ("use_bias" in options)
    heads = N if make is full else K
    output, _ = multi_head_attention(
        x, context, context, N, 10, num_kv_heads=heads, params=params, is_causal=True, query_offset=0
    )
    near(output, ops.convert_to_numpy(expected), 1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (full, {"use_gate": True}, "use_gate"),
        (grouped, {"sliding_window": 3}, "sliding_window"),
        (full, {"output_shape": (2, 3)}, "output_shape"),
        (full, {"attention_axes": 1, "rank": 4}, "attention_axes"),
        (full, {"rank": 4}, "attention_axes"),
    ],
)
def test_parameters_that_do_not_say_all(make, options, named):
    shape = (B, *(3,) * (options.pop("rank", 3) - 2), 10)
    layer = make(**options)
    layer.build(shape, shape)
    with pytest.raises(NotImplementedError, match=named):
        multi_head_params(layer)


def test_parameters_of_what_has_none():
    with pytest.raises(ValueError, match="not built"):
        multi_head_params(full())
    with pytest.raises(TypeError, match="Dense"):
        multi_head_params(keras.layers.Dense(3))


def test_attention_over_the_last_axis_but_one():
    layer = full(attention_axes=2)
    x = np.random.default_rng(6).standard_normal((B, 3, T, 10)).astype("float32")
    expected = layer(x, x)
    output, _ = multi_head_attention(*[ops.convert_to_tensor(x)] * 3, N, 10, params=multi_head_params(layer))
    near(output, ops.convert_to_numpy(expected), 1e-5)
