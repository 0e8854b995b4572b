"""flash-attn's function for decoding: what is written, where, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from attention_xp.interop.flash_attn import flash_attn_func, flash_attn_with_kvcache
from tests._backends import Backend, to_numpy
from tests._inputs import normal

B, S, H, HKV, D = 2, 9, 4, 2, 8
Q, K, V = normal(B, S, H, D), normal(B, S, HKV, D, seed=1), normal(B, S, HKV, D, seed=2)


@pytest.mark.backends("numpy", "strict", "torch")
def test_decoding_in_place_is_one_causal_call(library):
    q, k, v = (library.array(a) for a in (Q, K, V))
    caches, steps = [library.array(np.full((B, S, HKV, D), np.nan)) for _ in range(2)], []
    for start, stop in ((0, 4), (4, 5), (5, 8), (8, 9)):
        rows = [a[:, start:stop, ...] for a in (q, k, v)]
        steps.append(flash_attn_with_kvcache(rows[0], *caches, *rows[1:], cache_seqlens=start, causal=True))
    whole = to_numpy(flash_attn_func(q, k, v, causal=True))
    np.testing.assert_allclose(np.concatenate([to_numpy(a) for a in steps], axis=1), whole, atol=1e-5)
    np.testing.assert_array_equal(to_numpy(caches[0]), to_numpy(k))


@pytest.mark.backends("jax")
def test_jax_gives_the_caches_back():
    @partial(jax.jit, donate_argnums=(1, 2))
    def step(q, k_cache, v_cache, k, v, seqlens):
        return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=seqlens, causal=True)

    q, k, v = (Backend.JAX.array(a) for a in (Q, K, V))
    caches, steps = [jnp.zeros((B, S, HKV, D), "float32") for _ in range(2)], []
    for i in range(S):
        out, *caches = step(q[:, i : i + 1], *caches, k[:, i : i + 1], v[:, i : i + 1], jnp.full((B,), i, "int32"))
        steps.append(out)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), flash_attn_func(q, k, v, causal=True), atol=1e-5)
    np.testing.assert_array_equal(caches[0], k)
    alone = flash_attn_with_kvcache(q[:, -1:], *caches)  # nothing is written, and nothing comes back
    np.testing.assert_allclose(alone, steps[-1], atol=1e-5)


def overflowing(library):
    """A call whose second item has no room, and of whose items the first two share a page."""
    make = library.array
    pool = make(normal(3, 4, HKV, D)), make(normal(3, 4, HKV, D, seed=1))
    table, seqlens = make(np.asarray([[2, 1], [1, 0]], np.int32)), make(np.asarray([3, 7], np.int32))
    return (make(Q[:, :2]), *pool, make(K[:, :2]), make(V[:, :2])), {"block_table": table, "cache_seqlens": seqlens}


def assert_second_is_lost(out, caches, before):
    assert np.isnan(to_numpy(out)[1]).all()
    assert np.isfinite(to_numpy(out)[0]).all()
    for found, old, new in zip(caches, before, (K, V), strict=True):
        expected = old.copy()
        expected[2, 3], expected[1, 0] = new[0, 0], new[0, 1]
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-6)


@pytest.mark.backends("numpy", "torch", "jax")
@pytest.mark.parametrize("how", [{}, {"return_softmax_lse": True, "causal": True}], ids=["plain", "lse"])
def test_an_item_without_room_is_refused_and_nothing_is_written(library, how):
    arrays, options = overflowing(library)
    before = [to_numpy(a).copy() for a in arrays[1:3]]
    with pytest.raises(ValueError, match=r"cache_seqlens\[1\] is 7, with new keys 9, but there is room for 8"):
        flash_attn_with_kvcache(*arrays, **options, **how)
    for found, old in zip(arrays[1:3], before, strict=True):
        np.testing.assert_array_equal(to_numpy(found), old)


@pytest.mark.backends("torch")
def test_an_item_without_room_gives_nan_where_nothing_is_known_in_torch():
    q, k, v = (torch.from_numpy(a[:, :2]) for a in (Q, K, V))
    caches = torch.zeros(2, B, 8, HKV, D, dtype=torch.float64)
    step = torch.compile(flash_attn_with_kvcache, backend="eager", fullgraph=True)
    out, lse = step(q, *caches, k, v, cache_seqlens=torch.tensor([3, 7]), return_softmax_lse=True)
    assert out.isnan().all((1, 2, 3)).tolist() == lse.isnan().all((1, 2)).tolist() == [False, True]
    assert not caches[:, 1].any()
    assert caches[0, 0, 3:5].equal(k[0])
    assert torch.count_nonzero(caches[0, 0]) == k[0].numel()


@pytest.mark.backends("jax")
@pytest.mark.with_nan
def test_an_item_without_room_gives_nan_where_nothing_is_known_in_jax():
    arrays, options = overflowing(Backend.JAX)
    out, *caches = jax.jit(flash_attn_with_kvcache)(*arrays, **options)
    assert_second_is_lost(out, caches, [to_numpy(a) for a in arrays[1:3]])


@pytest.mark.backends("torch")
def test_torch_follows_no_gradient_into_a_cache():
    q, k = (torch.from_numpy(a[:, :1]).requires_grad_() for a in (Q, K))
    caches = torch.zeros(2, B, S, HKV, D, dtype=torch.float64)
    out = flash_attn_with_kvcache(q, *caches, k, k, cache_seqlens=2)
    assert not out.requires_grad
    assert not caches.requires_grad
    assert caches[0, :, 2].equal(k[:, 0])


def bad(message, error=ValueError, **options):
    return pytest.param(options, error, message, id=message)


F, I = np.ones((S, 2)), np.zeros(B, np.int32)
NEW = {"k": K[:, :1], "v": V[:, :1], "cache_seqlens": 1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        bad("v is required", k=K[:, :1], cache_seqlens=1),
        bad("cache_seqlens is required", k=K[:, :1], v=V[:, :1]),
        bad("k does not fit", **NEW | {"k": K[:1, :1]}),
        bad("v does not fit", **NEW | {"v": V[:, :2]}),
        bad("k is float32", TypeError, **NEW | {"k": K[:, :1].astype("float32")}),
        bad("rotary_cos and rotary_sin need each other", rotary_cos=F, **NEW),
        bad("need each other, and k and v", rotary_cos=F, rotary_sin=F),
        bad("must have a row for each of the 9 positions", rotary_cos=F[1:], rotary_sin=F[1:], **NEW),
        bad("cache_seqlens must hold one number", cache_seqlens=np.zeros(3, np.int32)),
        bad(r"cache_seqlens\[0\] must not be negative", cache_seqlens=-1),
        bad("but there is room for 9", **NEW | {"cache_seqlens": 9}),
        bad("item 0 reaches an entry of cache_batch_idx", cache_batch_idx=I - 1),
        bad("item 1 reaches an entry of cache_batch_idx or block_table", block_table=np.asarray([[0], [2]], np.int32)),
        bad("cache_batch_idx cannot be given together", cache_batch_idx=I, block_table=I[:, None]),
        bad("block_table must be an integer array", TypeError, block_table=F),
        bad("cache_leftpad must be an int", TypeError, cache_leftpad=I * 1.0),
        bad("num_splits must be at least 0", num_splits=-1),
        bad("return_softmax_lse must be a bool", TypeError, return_softmax_lse=1),
        bad("rotary_interleaved must be a bool", TypeError, rotary_interleaved=None),
    ],
)
def test_bad_input(options, error, message):
    k_cache, v_cache = K.copy(), V.copy()
    with pytest.raises(error, match=message):
        flash_attn_with_kvcache(Q, k_cache, v_cache, **options)
    assert np.array_equal(k_cache, K)
    assert np.array_equal(v_cache, V)


def test_a_cache_with_fewer_items_is_refused():
    with pytest.raises(ValueError, match="k_cache has 1 items but q has 2"):
        flash_attn_with_kvcache(Q, K[:1], V[:1])
