"""Wrong arguments of every adapter: each error names an argument as the caller wrote it, and none as we call it."""

import inspect
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch

from attention_xp.interop import (
    flash_attn,
    flax,
    jax as of_jax,
    keras as of_keras,
    onnx,
    torch as of_torch,
    transformers,
)
from attention_xp.interop._border import named_as

# Keras asks torch for an array as NumPy 1 did.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning", "ignore:Casting complex values"
)
OURS = (
    "query", "key", "value", "mask", "bias", "scale", "softcap", "window", "sinks", "impl", "dropout_rate", "query_offset",
    "query_lengths", "key_lengths", "cu_seqlens_q", "cu_seqlens_k", "num_heads", "num_kv_heads", "state",
)  # fmt: skip
MAKE = {
    "numpy": np.asarray,
    "torch": torch.from_numpy,
    "jax": jnp.asarray,
    "keras": keras.ops.convert_to_tensor,
}


def made(library, **given):
    """Arguments of a call: a tuple is the shape of an array, and lists are integers."""
    rng, make = np.random.default_rng(0), MAKE[library]
    kinds = {tuple: lambda s: make(rng.standard_normal(s).astype("f4")), list: lambda n: make(np.asarray(n, "i4"))}
    return {name: kinds.get(type(a), lambda a: a)(a) for name, a in given.items()}


ENDS, TABLE, THEIRS = [0, 2, 5], [[0, 1], [2, 3]], {"dropout_p": 0.1, "softmax_scale": 0.3, "softcap": 2.0, "rng": 3}
BHSD = {"query": (2, 4, 5, 8), "key": (2, 2, 6, 8), "value": (2, 2, 6, 8)}
BSHD = {"query": (2, 5, 4, 8), "key": (2, 6, 2, 8), "value": (2, 6, 2, 8)}
PACKED, PAGES = {"q": (5, 4, 8), "k": (5, 2, 8), "v": (5, 2, 8)}, {"q": (5, 4, 8), "k": (4, 2, 2, 8), "v": (4, 2, 2, 8)}
BOUNDS = {"cu_seqlens_q": ENDS, "cu_seqlens_k": ENDS, "max_seqlen_q": 3, "max_seqlen_k": 3}
CASES = {
    "dense": (
        flash_attn.flash_attn_func,
        made("numpy", q=(2, 5, 4, 8), k=(2, 6, 2, 8), v=(2, 6, 2, 8), alibi_slopes=(4,), causal=True, **THEIRS),
    ),
    "kvpacked": (flash_attn.flash_attn_kvpacked_func, made("numpy", q=(2, 5, 4, 8), kv=(2, 6, 2, 2, 8))),
    "qkvpacked": (flash_attn.flash_attn_qkvpacked_func, made("numpy", qkv=(2, 6, 3, 2, 8))),
    "varlen kvpacked": (flash_attn.flash_attn_varlen_kvpacked_func, made("numpy", q=(5, 4, 8), kv=(5, 2, 2, 8), **BOUNDS)),
    "varlen qkvpacked": (
        flash_attn.flash_attn_varlen_qkvpacked_func,
        made("numpy", qkv=(5, 3, 4, 8), cu_seqlens=ENDS, max_seqlen=3),
    ),
    "varlen": (flash_attn.flash_attn_varlen_func, made("numpy", **PACKED, **BOUNDS, alibi_slopes=(2, 4), **THEIRS)),
    "pages": (flash_attn.flash_attn_varlen_func, made("torch", **PAGES, **BOUNDS, block_table=TABLE)),
    "kvcache": (
        flash_attn.flash_attn_with_kvcache,
        made(
            "numpy", q=(2, 1, 4, 8), k_cache=(2, 12, 2, 8), v_cache=(2, 12, 2, 8), k=(2, 1, 2, 8), v=(2, 1, 2, 8),
            rotary_cos=(12, 4), rotary_sin=(12, 4), cache_seqlens=[3, 4], cache_batch_idx=[1, 0], cache_leftpad=[1, 0],
            softmax_scale=0.3, softcap=2.0, alibi_slopes=(2, 4), num_splits=1,
        ),
    ),
    "attention of ONNX": (
        onnx.attention,
        made(
            "numpy", Q=(2, 4, 5, 8), K=(2, 2, 6, 8), V=(2, 2, 6, 8), attn_mask=(5, 9), past_key=(2, 2, 3, 8),
            past_value=(2, 2, 3, 8), is_causal=1, left_window_size=3, kv_num_heads=2, q_num_heads=4, scale=0.3, softcap=2.0,
        ),
    ),
    "lengths of ONNX": (
        onnx.attention,
        made(
            "torch", Q=(2, 5, 32), K=(2, 6, 16), V=(2, 6, 16), nonpad_kv_seqlen=[5, 6], kv_num_heads=2, q_num_heads=4
        ),
    ),
    "rotation of ONNX": (
        onnx.rotary_embedding,
        made("numpy", X=(2, 4, 5, 8), cos_cache=(9, 4), sin_cache=(9, 4), position_ids=[[0] * 5] * 2, num_heads=4),
    ),
    "linear of ONNX": (
        onnx.linear_attention,
        made(
            "numpy", query=(2, 5, 32), key=(2, 5, 16), value=(2, 5, 16), past_state=(2, 2, 8, 8), decay=(2, 5, 16),
            beta=(2, 5, 2), chunk_size=4, kv_num_heads=2, q_num_heads=4, scale=0.3, update_rule="gated_delta",
        ),
    ),
    "JAX": (
        of_jax.dot_product_attention,
        made("jax", **BSHD, bias=(4, 5, 6), scale=0.3, is_causal=True, query_seq_lengths=[3, 4], local_window_size=2),
    ),
    "Flax": (
        flax.attention_fn,
        made("jax", **BSHD, bias=(4, 5, 6), mask=(5, 6), dropout_rng=jax.random.key(0), dropout_rate=0.1, is_causal=True),
    ),
    "Keras": (
        of_keras.dot_product_attention,
        made("keras", **BSHD, bias=(4, 5, 6), mask=(5, 6), scale=0.3, is_causal=True, attn_logits_soft_cap=2.0),
    ),
    "torch": (
        of_torch.scaled_dot_product_attention,
        made("torch", **BHSD, attn_mask=(5, 6), dropout_p=0.1, is_causal=True, scale=0.3, enable_gqa=True, rng=3),
    ),
    "varlen of torch": (
        of_torch.varlen_attn,
        made(
            "torch", query=(5, 4, 8), key=(5, 2, 8), value=(5, 2, 8), cu_seq_q=ENDS, cu_seq_k=ENDS, max_q=3, max_k=3,
            scale=0.3, enable_gqa=True, seqused_k=[2, 2],
        ),
    ),
    "pages of torch": (
        of_torch.varlen_attn,
        made(
            "torch", query=(5, 4, 8), key=(4, 2, 2, 8), value=(4, 2, 2, 8), cu_seq_q=ENDS, cu_seq_k=None, max_q=3, max_k=3,
            enable_gqa=True, seqused_k=[2, 2], block_table=TABLE,
        ),
    ),
    "transformers": (
        transformers.attention_forward,
        {
            "module": SimpleNamespace(training=False),
            **made("torch", **BHSD, attention_mask=(5, 6), dropout=0.1, scaling=0.3, position_bias=(4, 5, 6)),
            **made("torch", softcap=2.0, s_aux=(4,), output_attentions=True),
        },
    ),
    "masks of transformers": (
        transformers.attention_mask,
        made("torch", batch_size=2, q_length=5, kv_length=6, q_offset=1, kv_offset=0, attention_mask=(2, 6)),
    ),
}  # fmt: skip
ANYTHING = {"module", "cu_seq_k of pages of torch"}


def wrong(given):
    """Values that do not fit where one did."""
    yield from ("word", object(), {})
    if not hasattr(given, "shape") or "key" in str(given.dtype):
        yield from ([1.0], -(2**70), 2.5, float("nan"), np.zeros(3), (1, 2, 3))
        return
    name, array = type(given).__module__.partition(".")[0], np.array(given)
    library = name if name in MAKE else "jax"
    yield from (None, MAKE["jax" if library == "torch" else "torch"](array))
    cast = array.astype
    yield from map(
        MAKE[library], (array[None], array[..., :0], array[..., :1], np.repeat(array, 2, 0), np.repeat(array, 2, -1))
    )
    yield from map(MAKE[library], (array[None, None], cast("c8"), cast("i8"), cast("f8"), cast("f4"), cast("?")))


@pytest.mark.parametrize("case", CASES)
def test_errors_name_what_the_caller_wrote(case):
    adapter, given = CASES[case]
    theirs = {*inspect.signature(adapter).parameters, *given}
    foreign = re.compile(rf"(?<!JAX )(?<![\w.])({'|'.join(n for n in OURS if n not in theirs)})(?!\w)")
    adapter(**given)
    for name in given:
        count = 0
        for value in wrong(given[name]):
            try:
                adapter(**given | {name: value})
            except (TypeError, ValueError, NotImplementedError) as error:
                count += 1
                text = str(error)
                assert any(re.search(rf"\b{one}\b", text) for one in theirs), (name, text)
                assert not foreign.search(text), (name, text)
        assert count > 1 or name in ANYTHING or f"{name} of {case}" in ANYTHING, name


def test_only_our_texts_are_renamed():
    class NoteError(ValueError):
        pass

    @named_as({"key": "k", "mask": "attn_mask"})
    def adapter(error):
        raise error

    for error in (ValueError("key is wrong"), NoteError("mask of key", 3)):
        with pytest.raises(type(error), match=re.escape(str(error))):
            adapter(error)  # raised in this file
    q = np.zeros((2, 3, 4, 8))
    with pytest.raises(TypeError, match=r"^k is float32 but q is float64: expected one dtype$"):
        flash_attn.flash_attn_func(q, q.astype("f4"), q)
    with pytest.raises(TypeError, match="or a JAX key, got"):
        flash_attn.flash_attn_func(q, q, q, rng="x")


@pytest.mark.parametrize(
    ("case", "change", "text"),
    [
        ("kvpacked", {"kv": (2, 6, 2, 2, 9)}, r"kv\[:, :, 0\] has width 9 but q has width 8"),
        ("JAX", {"bias": (4, 7, 6)}, r"bias does not broadcast .* bias \(B, N, T, S\) = \(2, 4, 5, 6\), got bias \(4, 7, 6\)"),
        ("Keras", {"mask": (7, 6)}, r"mask does not broadcast .* mask \(B, N, T, S\) = \(2, 4, 5, 6\), got mask \(7, 6\)"),
        ("torch", {"attn_mask": (7, 6)}, r"attn_mask does not broadcast .* got attn_mask \(7, 6\)"),
        ("transformers", {"s_aux": (3,)}, r"s_aux must hold one logit per head: expected s_aux \(H,\) = \(4,\)"),
        ("varlen of torch", {"seqused_k": [2, 4]}, r"seqused_k\[1\] is 4, but sequence 1 has 3 keys"),
        ("pages of torch", {"block_table": [[0, 1], [9, 3]]}, "sequence 1 reaches an entry of block_table"),
    ],
)  # fmt: skip
def test_what_is_said(case, change, text):
    adapter, given = CASES[case]
    library = {"kvpacked": "numpy", "JAX": "jax", "Keras": "keras"}.get(case, "torch")
    with pytest.raises(ValueError, match=text):
        adapter(**given | made(library, **change))
