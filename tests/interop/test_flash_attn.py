"""flash-attn's functions computed here, against what its documentation says; it runs on CUDA alone."""

import inspect
import sys
from itertools import product

import jax
import numpy as np
import pytest
import torch

from attention_xp import flash_attention
from attention_xp.interop import flash_attn
from attention_xp.interop.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
)
from tests._backends import Backend, to_numpy
from tests._inputs import normal
from tests.interop._flash_attn import CALLS, CLOSE, Maker, sequence

SHARED = {
    "dropout_p": 0.0, "softmax_scale": None, "causal": False, "window_size": (-1, -1), "softcap": 0.0, "alibi_slopes": None,
    "deterministic": False, "return_attn_probs": False,
}  # fmt: skip
OF_CACHE = {
    "k": None, "v": None, "rotary_cos": None, "rotary_sin": None, "cache_seqlens": None, "cache_batch_idx": None,
    "cache_leftpad": None, "block_table": None, "softmax_scale": None, "causal": False, "window_size": (-1, -1), "softcap": 0.0,
    "rotary_interleaved": True, "alibi_slopes": None, "num_splits": 0, "return_softmax_lse": False,
}  # fmt: skip
BOUNDS = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
SIGNATURES = {
    "flash_attn_func": (["q", "k", "v"], SHARED),
    "flash_attn_kvpacked_func": (["q", "kv"], SHARED),
    "flash_attn_qkvpacked_func": (["qkv"], SHARED),
    "flash_attn_varlen_func": (["q", "k", "v", *BOUNDS], SHARED | {"block_table": None}),
    "flash_attn_varlen_kvpacked_func": (["q", "kv", *BOUNDS], SHARED),
    "flash_attn_varlen_qkvpacked_func": (["qkv", "cu_seqlens", "max_seqlen"], SHARED),
    "flash_attn_with_kvcache": (["q", "k_cache", "v_cache"], OF_CACHE),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    required, optional = SIGNATURES[name]
    found = inspect.signature(getattr(flash_attn, name)).parameters
    defaults = {n: p.default for n, p in found.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(defaults) == [*required, *optional]
    assert {n: defaults[n] for n in optional} == optional
    ours = [n for n, p in found.items() if p.kind is p.KEYWORD_ONLY]
    assert ours == ([] if name == "flash_attn_with_kvcache" else ["rng"])
    assert sorted(SIGNATURES) == flash_attn.__all__


# Few, with many options: each call compiles for a second or more.
IN_JAX = {"dense": [0, 3], "varlen": [20], "varlen packed": [1], "kvcache": [22]}


@pytest.mark.parametrize("kind", CALLS)
def test_random_calls(library, kind):
    dtypes = library.dtypes()
    for seed in IN_JAX[kind] if library.library == "jax" else range(60):
        dtype = dtypes[seed % len(dtypes)]
        call = CALLS[kind](seed, library, dtype)
        assert call.error(dtype) < 1, (seed, dtype, call.what)


GRID = list(product((1, 2, 6), (False, True), (False, True), (0.0, 3.0), (False, True)))
LENGTHS = (1, 40), (17, 34), (33, 17)


@pytest.mark.backends("numpy", "torch")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_grid(library, lengths):
    """Heads, causal, local, soft cap and slopes in every combination, on dtypes in turn."""
    (Sq, Sk), dtypes = lengths, library.dtypes()
    for i, (Hkv, causal, local, softcap, alibi) in enumerate(GRID):
        make = Maker(i, library, dtypes[i % len(dtypes)])
        (q, ours_q), (kv, ours_kv) = make.normal(1, Sq, 6, 16), make.normal(1, Sk, 2, Hkv, 16)
        window = (make.draw.randrange(Sk), make.draw.randrange(Sk)) if local else (-1, -1)
        slopes = make.rng.random(6).astype(np.float32) * 0.3 if alibi else None
        options = {"causal": causal, "window_size": window, "softcap": softcap}
        ours = {"alibi_slopes": library.array(slopes)} if alibi else {}
        found = flash_attn_kvpacked_func(ours_q, ours_kv, return_attn_probs=True, **options, **ours)
        expected = sequence(q[0], kv[0, :, 0], kv[0, :, 1], slopes=slopes, **options)
        for a, b in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(to_numpy(a)[0], b, rtol=CLOSE[make.dtype], atol=CLOSE[make.dtype])


def test_rows_without_keys(library):
    q, k = (library.array(normal(1, S, 2, 8)) for S in (5, 2))
    out, lse, _ = flash_attn_func(q, k, k, causal=True, return_attn_probs=True)
    assert not to_numpy(out)[:, :3].any()
    assert to_numpy(out)[:, 3:].any()
    assert np.isposinf(to_numpy(lse)).tolist() == [[[True, True, True, False, False]] * 2]
    out, lse, _ = flash_attn_func(q, k[:, :0, ...], k[:, :0, ...], return_attn_probs=True)
    assert not to_numpy(out).any()
    assert np.isposinf(to_numpy(lse)).all()


def test_dropped_weights_are_negative(library):
    q, k, v = (library.array(normal(2, S, 2, 8, seed=i)) for i, S in enumerate((6, 9, 9)))
    for rng in [7] if library.library == "jax" else [None, 7]:
        out, _, signed = flash_attn_func(q, k, v, 0.25, causal=True, return_attn_probs=True, rng=rng)
        kept = np.maximum(to_numpy(signed), 0) / 0.75
        np.testing.assert_allclose(to_numpy(out), np.einsum("bhqk,bkhd->bqhd", kept, to_numpy(v)), atol=1e-5)
    plain = [sequence(*(to_numpy(a)[b].astype("float64") for a in (q, k, v)), causal=True) for b in range(2)]
    np.testing.assert_allclose(np.abs(to_numpy(signed)), np.stack([p[2] for p in plain]), atol=1e-5)
    assert 20 < (to_numpy(signed) < 0).sum() < 60  # of 156


@pytest.mark.backends("numpy", "torch")
@pytest.mark.parametrize("has_positions", [False, True])
def test_dropped_weights_of_packed_sequences(library, has_positions):
    (q, k, v), bounds = (
        (library.array(normal(S, 2, 8, seed=i)) for i, S in enumerate((7, 9, 9))),
        [[0, 3, 7], [0, 5, 9]],
    )
    slopes, given = library.array(normal(2, 2) ** 2), [library.array(np.asarray(b, np.int32)) for b in bounds]
    how = {"window_size": (3, 1), "alibi_slopes": slopes} if has_positions else {}
    how |= {"return_attn_probs": True, "rng": 5}
    out, _, signed = flash_attn_varlen_func(q, k, v, *given, 4, 5, 0.25, **how)
    assert tuple(signed.shape) == (2, 2, 4, 5)
    assert (to_numpy(signed) < 0).any()
    for i in range(2):
        rows, keys = (slice(b[i], b[i + 1]) for b in bounds)
        part = to_numpy(signed)[i, :, : rows.stop - rows.start, : keys.stop - keys.start]
        kept = np.einsum("hqk,khd->qhd", np.maximum(part, 0) / 0.75, to_numpy(v)[keys])
        np.testing.assert_allclose(to_numpy(out)[rows], kept, atol=1e-5)


@pytest.mark.backends("torch")
def test_generators_and_gradients_in_torch():
    x = torch.ones(1, 64, 2, 1)
    calls = [flash_attn_func(x, x, x, 0.25, rng=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[0], calls[2])
    assert abs(float(calls[0].mean()) - 1.0) < 0.1

    arrays = [torch.from_numpy(normal(2, S, H, 3)).requires_grad_() for S, H in ((3, 4), (5, 2), (5, 2))]
    how = {"causal": True, "window_size": (2, -1), "softcap": 2.0, "alibi_slopes": torch.from_numpy(normal(2, 4) ** 2)}
    assert torch.autograd.gradcheck(lambda *a: flash_attn_func(*a, **how), arrays, fast_mode=True)
    packed = [torch.from_numpy(normal(6, H, 3)).requires_grad_() for H in (4, 2, 2)]
    bounds = torch.tensor([0, 2, 6])
    assert torch.autograd.gradcheck(
        lambda *a: flash_attn_varlen_func(*a, bounds, bounds, 4, 4, **how), packed, fast_mode=True
    )
    assert flash_attn_func(*arrays).is_contiguous()


@pytest.mark.backends("torch")
def test_deterministic_calls_leave_the_kernels_of_torch_alone(monkeypatch):
    asked = []

    def spy(*arrays, **how):
        asked.append(how.get("impl"))
        return flash_attention(*arrays, **how)

    monkeypatch.setattr(sys.modules[flash_attn_func.__module__], "flash_attention", spy)
    qkv = torch.from_numpy(normal(1, 70, 3, 4, 8)).requires_grad_()
    found = [flash_attn_qkvpacked_func(qkv, deterministic=one) for one in (True, True, False)]
    torch.testing.assert_close(found[0], found[2])
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), qkv)[0] for out in found[:2]))
    assert asked == ["tiled", "tiled", None]


@pytest.mark.backends("jax")
def test_gradients_in_jax_are_those_in_torch():
    arrays = [normal(2, S, H, 3) for S, H in ((3, 4), (5, 2), (5, 2))]
    how = {"window_size": (2, 1), "softcap": 2.0}
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    flash_attn_func(*tensors, **how).square().sum().backward()
    theirs = jax.jit(jax.grad(lambda *a: (flash_attn_func(*a, **how) ** 2).sum(), (0, 1, 2)))
    for a, b in zip(theirs(*(Backend.JAX.array(a, "float64") for a in arrays)), tensors, strict=True):
        np.testing.assert_allclose(a, b.grad, atol=1e-10)


@pytest.mark.backends("torch")
def test_compiled_without_a_break():
    q, k = torch.from_numpy(normal(1, 3, 4, 8)), torch.from_numpy(normal(1, 5, 2, 8))
    compiled = torch.compile(flash_attn_func, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(q, k, k, causal=True), flash_attn_func(q, k, k, causal=True))


X, ONE, ENDS = np.zeros((2, 5, 4, 8)), np.zeros((5, 4, 8)), np.asarray([0, 2, 5], np.int32)
PAGES, TABLE = np.zeros((3, 2, 4, 8)), np.asarray([[0, -1], [2, 1]], np.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: flash_attn_func(X.tolist(), X, X), TypeError, "q must be an array"),
        (lambda: flash_attn_func(ONE, X, X), ValueError, r"q has the wrong number of axes: expected q \(B, Sq, H, D\)"),
        (lambda: flash_attn_func(X, X[:1], X[:1]), ValueError, "k has 1 batch items"),
        (lambda: flash_attn_func(X, X[:, :, :3], X[:, :, :3]), ValueError, "q has 4 heads"),
        (lambda: flash_attn_func(X, X[..., :4], X), ValueError, "k has width 4"),
        (lambda: flash_attn_func(X, X, X[:, :3]), ValueError, "v must have the shape of k"),
        (lambda: flash_attn_func(X, X, X.astype("float32")), TypeError, "v is float32"),
        (lambda: flash_attn_func(X, X, X, causal=1), TypeError, "causal must be a bool"),
        (lambda: flash_attn_func(X, X, X, window_size=3), ValueError, "window_size must be two ints"),
        (lambda: flash_attn_func(X, X, X, window_size=(3, None)), ValueError, "open side, got .3, None"),
        (lambda: flash_attn_func(X, X, X, dropout_p=1.0), ValueError, "dropout_p must satisfy"),
        (lambda: flash_attn_func(X, X, X, softcap="1"), TypeError, "softcap must be a real number"),
        (lambda: flash_attn_func(X, X, X, alibi_slopes=np.zeros((1, 4))), ValueError, "alibi_slopes must hold one"),
        (lambda: flash_attn_func(X, X, X, alibi_slopes=np.zeros(4, int)), TypeError, "alibi_slopes must be a floating"),
        (lambda: flash_attn_func(X, X, X, rng="seed"), TypeError, "rng must be"),
        (lambda: flash_attn_func(X, X, X, deterministic=None), TypeError, "deterministic must be a bool"),
        (lambda: flash_attn_func(X, X, X, return_attn_probs=1), TypeError, "return_attn_probs must be a bool"),
        (lambda: flash_attn_kvpacked_func(X, np.zeros((2, 5, 3, 4, 8))), ValueError, "kv must hold 2 arrays"),
        (lambda: flash_attn_qkvpacked_func(X), ValueError, "qkv must hold 3 arrays"),
        (lambda: flash_attn_varlen_func(X, ONE, ONE, ENDS, ENDS, 3, 3), ValueError, "q has the wrong number of axes"),
        (lambda: flash_attn_varlen_func(ONE, ONE, ONE, ENDS, ENDS, 2, 3), ValueError, "max_seqlen_q is 2"),
        (lambda: flash_attn_varlen_func(ONE, ONE, ONE, ENDS, ENDS, 3, 2), ValueError, "max_seqlen_k is 2"),
        (lambda: flash_attn_varlen_func(ONE, ONE, ONE, ENDS, ENDS[1:], 3, 3), ValueError, "as many sequences"),
        (lambda: flash_attn_varlen_func(ONE, ONE, ONE, ENDS, ENDS * 1.0, 3, 3), TypeError, "cu_seqlens_k must be"),
        (
            lambda: flash_attn_varlen_func(ONE, PAGES, PAGES, ENDS, ENDS + TABLE[0, 0], 3, 3, block_table=TABLE[:1]),
            ValueError,
            "block_table must hold the pages",
        ),
        (
            lambda: flash_attn_varlen_func(ONE, PAGES, PAGES, ENDS, ENDS, 3, 3, block_table=TABLE - 1),
            ValueError,
            "sequence 0 reaches an entry of block_table",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
