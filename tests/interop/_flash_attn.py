"""What flash-attn's documentation says that its functions return, in float64, and random calls of each of them.

flash-attn itself needs CUDA. Nothing here is shared with the package.
"""

import random
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from attention_xp.interop.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from tests._backends import Backend, to_numpy

CLOSE = {"float64": 1e-11, "float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}


def sequence(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    slopes: np.ndarray | None = None,
    leftpad: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attend in one sequence, (S, H, D): output (Sq, H, Dv), log-sum-exp (H, Sq) and weights (H, Sq, Sk)."""
    (Sq, H, D), (Sk, Hkv, _) = q.shape, k.shape
    out, lse, weights = np.zeros((Sq, H, v.shape[2])), np.full((H, Sq), np.inf), np.zeros((H, Sq, Sk))
    scale = D**-0.5 if softmax_scale is None else softmax_scale
    left, right = window_size[0], 0 if causal else window_size[1]
    for h in range(H):
        for i in range(Sq):
            p = i + Sk - Sq
            js = [
                j
                for j in range(leftpad, Sk)
                if (left < 0 or j >= p - left) and (j <= p + right or (right < 0 and not causal))
            ]
            if not js:
                continue
            s = scale * (k[js, h // (H // Hkv)] @ q[i, h])
            s = softcap * np.tanh(s / softcap) if softcap > 0 else s
            s = s if slopes is None else s - slopes[h] * np.abs(p - np.asarray(js))
            lse[h, i] = s.max() + np.log(np.exp(s - s.max()).sum())
            weights[h, i, js] = np.exp(s - lse[h, i])
            out[i, h] = weights[h, i, js] @ v[js, h // (H // Hkv)]
    return out, lse, weights


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, *, interleaved: bool) -> np.ndarray:
    """Turn pairs of the first features of (S, H, D); cosines and sines are (S, R / 2)."""
    half, out = cos.shape[1], x.copy()
    first, second = (
        (np.arange(half) * 2, np.arange(half) * 2 + 1) if interleaved else (np.arange(half), half + np.arange(half))
    )
    cos, sin = cos[:, None], sin[:, None]
    out[..., first], out[..., second] = (
        x[..., first] * cos - x[..., second] * sin,
        x[..., first] * sin + x[..., second] * cos,
    )
    return out


class Maker:
    """Draws arrays and options of a call; what a 16-bit array holds is what the formula sees as well."""

    def __init__(self, seed: int, library: Backend, dtype: str) -> None:
        self.draw, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.library, self.dtype = library, dtype

    def normal(self, *shape: int) -> tuple[np.ndarray, Any]:
        theirs = self.library.array(self.rng.standard_normal(shape), self.dtype)
        return to_numpy(theirs).astype(np.float64), theirs

    def integers(self, values: Any) -> Any:
        return self.library.array(np.asarray(values, np.int32))

    def side(self) -> int:
        return self.draw.choice([-1, self.draw.randint(0, 6)])

    def heads(self) -> tuple[int, int]:
        Hkv = self.draw.randint(1, 3)
        return Hkv * self.draw.choice([1, 1, 2, 3]), Hkv

    def options(self, B: int, H: int) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """Options for both, our slopes, and those of each item."""
        draw, slopes = self.draw, None
        both = {
            "softmax_scale": draw.choice([None, 0.4]),
            "causal": draw.random() < 0.4,
            "window_size": draw.choice([(-1, -1), (self.side(), self.side())]),
            "softcap": draw.choice([0.0, 1.5, -1.0]),
        }
        if draw.random() < 0.4:
            slopes = self.rng.random(draw.choice([(H,), (B, H)])).astype(np.float32)
        ours = {"alibi_slopes": None if slopes is None else self.library.array(slopes)}
        return both, ours, [None] * B if slopes is None else np.broadcast_to(slopes, (B, H)).astype(np.float64)


class Found(NamedTuple):
    """Pairs of what was found and what was expected."""

    pairs: list[tuple[Any, np.ndarray]]
    what: Any

    def error(self, dtype: str) -> float:
        """The worst error in units of what is tolerated; infinite where a shape or an infinity is wrong."""
        worst = 0.0
        for result, expected in self.pairs:
            found = to_numpy(result).astype(np.float64)
            if found.shape != expected.shape or not np.array_equal(np.isinf(found), np.isinf(expected)):
                return np.inf
            finite = np.isfinite(expected)
            gap = np.abs(found[finite] - expected[finite]) / (1 + np.abs(expected[finite]))
            if not np.isfinite(gap).all():
                return np.inf
            worst = max(worst, float(gap.max(initial=0.0)) / CLOSE[dtype])
        return worst


def dense_call(seed: int, library: Backend, dtype: str) -> Found:
    """A random call of one of the three functions for sequences of one length."""
    make = Maker(seed, library, dtype)
    draw, (H, Hkv), kind = make.draw, make.heads(), make.draw.choice(["plain", "plain", "kv", "qkv"])
    B, Sq, Sk, D = draw.randint(1, 3), draw.randint(1, 9), draw.randint(1, 9), draw.choice([5, 8, 16])
    both, ours, slopes = make.options(B, H)
    options = {**both, **ours, "return_attn_probs": True, "deterministic": draw.random() < 0.2}
    if kind == "qkv":
        qkv, packed = make.normal(B, Sq, 3, H, D)
        q, k, v = (qkv[:, :, i] for i in range(3))
        found = flash_attn_qkvpacked_func(packed, **options)
    elif kind == "kv":
        (q, ours_q), (kv, packed) = make.normal(B, Sq, H, D), make.normal(B, Sk, 2, Hkv, D)
        k, v = kv[:, :, 0], kv[:, :, 1]
        found = flash_attn_kvpacked_func(ours_q, packed, **options)
    else:
        three = make.normal(B, Sq, H, D), make.normal(B, Sk, Hkv, D), make.normal(B, Sk, Hkv, draw.choice([D, 3]))
        (q, k, v), arrays = zip(*three, strict=True)
        found = flash_attn_func(*arrays, **options)
    wanted = [sequence(q[b], k[b], v[b], slopes=slopes[b], **both) for b in range(B)]
    pairs = [(found[i], np.stack([w[i] for w in wanted])) for i in range(2)]
    return Found([*pairs, (found[2], np.zeros((0,)))], (kind, B, H, Hkv, Sq, Sk, D, options))


def varlen_packed_call(seed: int, library: Backend, dtype: str) -> Found:
    """A random call on packed sequences whose keys and values, or all three, lie in one array."""
    make = Maker(seed, library, dtype)
    draw, (H, Hkv), has_all = make.draw, make.heads(), make.draw.random() < 0.5
    N, D = draw.randint(1, 4), draw.choice([5, 8])
    many = [[draw.randint(0, 7) for _ in range(N)] for _ in range(1 if has_all else 2)]
    bounds = [np.concatenate([[0], np.cumsum(n)]) for n in many]
    both, ours, slopes = make.options(N, H)
    options = {**both, **ours, "return_attn_probs": True}
    behind = draw.choice([0, 2])
    if has_all:
        qkv, packed = make.normal(bounds[0][-1] + behind, 3, H, D)
        q, k, v = (qkv[:, i] for i in range(3))
        found = flash_attn_varlen_qkvpacked_func(packed, make.integers(bounds[0]), max(many[0]), **options)
    else:
        (q, ours_q), (kv, packed) = make.normal(bounds[0][-1] + behind, H, D), make.normal(bounds[1][-1], 2, Hkv, D)
        k, v = kv[:, 0], kv[:, 1]
        found = flash_attn_varlen_kvpacked_func(ours_q, packed, *map(make.integers, bounds), *map(max, many), **options)
    wanted = sequences(q, k, v, bounds[0], bounds[-1], slopes, both)
    return Found(
        [*zip(found[:2], wanted, strict=True), (found[2], np.zeros((0,)))], (has_all, H, Hkv, D, many, options)
    )


def sequences(q: Any, k: Any, v: Any, begin: Any, of_keys: Any, slopes: Any, both: Any) -> tuple[Any, Any]:
    """Output and log-sum-exp of packed sequences."""
    out, lse = np.zeros((len(q), q.shape[1], v.shape[2])), np.full((q.shape[1], len(q)), np.inf)
    for i, (rows, keys) in enumerate(zip(pairwise(begin), pairwise(of_keys), strict=True)):
        own = slice(*rows)
        parts = q[own], *(a[slice(*keys)] for a in (k, v))
        out[own], lse[:, own], _ = sequence(*parts, slopes=slopes[i], **both)
    return out, lse


def varlen_call(seed: int, library: Backend, dtype: str) -> Found:
    """A random call on packed sequences, whose keys may lie in pages."""
    make = Maker(seed, library, dtype)
    draw, (H, Hkv) = make.draw, make.heads()
    N, D, Dv = draw.randint(1, 4), draw.choice([5, 8]), draw.choice([8, 3])
    many = [[draw.randint(0, 7) for _ in range(N)] for _ in range(2)]
    bounds = [np.concatenate([[0], np.cumsum(n)]) for n in many]
    (q, ours_q), (k, ours_k), (v, ours_v) = (
        make.normal(bounds[i][-1] + draw.choice([0, 2]) * (i == 0), h, width)
        for i, h, width in ((0, H, D), (1, Hkv, D), (1, Hkv, Dv))
    )
    both, ours, slopes = make.options(N, H)
    paged = draw.random() < 0.5
    if paged:
        size = draw.choice([2, 4])
        table = pages_of(make, many[1], size)
        ours_k, ours_v = (in_pages(make, a, bounds[1], table, size) for a in (k, v))
        ours["block_table"] = make.integers(table)
    found = flash_attn_varlen_func(
        ours_q, ours_k, ours_v, *map(make.integers, bounds), max(many[0]), max(many[1]) + draw.choice([0, 3]),
        return_attn_probs=True, **both, **ours,
    )  # fmt: skip
    out, lse = sequences(q, k, v, *bounds, slopes, both)
    return Found([(found[0], out), (found[1], lse), (found[2], np.zeros((0,)))], (paged, H, Hkv, D, many, both, ours))


def pages_of(make: Maker, lengths: list[int], size: int) -> np.ndarray:
    """A table of pages in random order, with entries that are none where no length reaches."""
    need = [-(-n // size) for n in lengths]
    table = np.full((len(lengths), max(need) + 1), make.draw.choice([-1, 10**6]))
    pool = make.draw.sample(range(sum(need) + 2), sum(need))
    for b, n in enumerate(need):
        table[b, :n] = [pool.pop() for _ in range(n)]
    return table


def in_pages(make: Maker, packed: np.ndarray, bounds: np.ndarray, table: np.ndarray, size: int) -> Any:
    """Lay packed rows into pages; the rest of the pool is NaN, which JAX is told to refuse in tests."""
    count = 2 + sum(-(-(b - a) // size) for a, b in pairwise(bounds))
    pool = np.full((count, size, *packed.shape[1:]), 99.0 if make.library is Backend.JAX else np.nan)
    for i in range(len(bounds) - 1):
        for j, row in enumerate(packed[bounds[i] : bounds[i + 1]]):
            pool[table[i, j // size], j % size] = row
    return make.library.array(pool, make.dtype)


def cache_call(seed: int, library: Backend, dtype: str) -> Found:
    """A random step of decoding: output and log-sum-exp, and what the caches hold afterwards."""
    make = Maker(seed, library, dtype)
    draw, (H, Hkv), room = make.draw, make.heads(), 12
    B, D, Dv, Sq = draw.randint(1, 3), 8, draw.choice([8, 3]), draw.randint(1, 5)
    n = draw.choice([0, Sq, draw.randint(1, 5)])
    before = [draw.randint(0, room - max(n, Sq)) for _ in range(B)]
    given = make.integers(before)
    if draw.random() < 0.2:
        before = [before[0]] * B
        given = before[0]
    if n == 0 and draw.random() < 0.2:
        before, given = [room] * B, None
    both, ours, slopes = make.options(B, H)
    table, size, count, where = layout(make, [b + n for b in before])
    (k_cache, ours_kc), (v_cache, ours_vc) = (make.normal(count, size, Hkv, width) for width in (D, Dv))
    q, ours_q = make.normal(B, Sq, H, D)
    pads = [draw.randint(0, b) if draw.random() < 0.4 else 0 for b in before]
    if any(pads):
        ours["cache_leftpad"] = make.integers(pads)
    turned, new = q, {}
    if n:
        (k, ours_k), (v, ours_v) = make.normal(B, n, Hkv, D), make.normal(B, n, Hkv, Dv)
        in_order = both["causal"] or both["window_size"] != (-1, -1)
        turned, k, angles = turn(make, q, k, before, room, in_order=in_order)
        new = {"k": ours_k, "v": ours_v, **angles}
        for b in range(B):
            for i in range(n):
                page, slot = divmod(before[b] + i, size)
                k_cache[table[b, page], slot], v_cache[table[b, page], slot] = k[b, i], v[b, i]
    options = {**both, **ours, **where, **new}
    splits = draw.choice([0, 1, 5])
    found = flash_attn_with_kvcache(
        ours_q, ours_kc, ours_vc, cache_seqlens=given, num_splits=splits, return_softmax_lse=True, **options
    )
    out, lse, *written = found
    assert len(written) == (2 if library is Backend.JAX and n else 0)
    wanted = []
    for b in range(B):
        pages = table[b, : -(-(before[b] + n) // size)]
        keys, values = (a[pages].reshape(-1, *a.shape[2:])[: before[b] + n] for a in (k_cache, v_cache))
        wanted.append(sequence(turned[b], keys, values, slopes=slopes[b], leftpad=pads[b], **both))
    pairs = [(out, np.stack([w[0] for w in wanted])), (lse, np.stack([w[1] for w in wanted]))]
    caches = zip(written or (ours_kc, ours_vc), (k_cache, v_cache), strict=True)
    return Found([*pairs, *caches], (before, n, pads, options))


def layout(make: Maker, after: list[int]) -> tuple[np.ndarray, int, int, dict[str, Any]]:
    """A table of pages, their size, how many there are, and the arguments that say so."""
    kind, B = make.draw.choice(["plain", "items", "pages"]), len(after)
    if kind == "pages":
        size = make.draw.choice([4, 6])
        table = pages_of(make, after, size)[:, : 12 // size]
        return table, size, 2 + sum(-(-n // size) for n in after), {"block_table": make.integers(table)}
    if kind == "plain":
        return np.arange(B)[:, None], 12, B + make.draw.choice([0, 2]), {}
    items = make.draw.sample(range(B + 2), B)
    return np.asarray(items)[:, None], 12, B + 2, {"cache_batch_idx": make.integers(items)}


def turn(
    make: Maker, q: Any, k: Any, before: list[int], room: int, *, in_order: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """Rotate queries and new keys, or not, and return the arguments that say so."""
    if make.draw.random() < 0.4:
        return q, k, {}
    half, interleaved = make.draw.choice([2, 4]), make.draw.random() < 0.5
    (cos, ours_cos), (sin, ours_sin) = make.normal(room + 3, half), make.normal(room + 3, half)
    at = [b + np.arange(q.shape[1]) * in_order for b in before], [b + np.arange(k.shape[1]) for b in before]
    q, k = (
        np.stack([rotated(x, cos[p], sin[p], interleaved=interleaved) for x, p in zip(xs, ps, strict=True)])
        for xs, ps in zip((q, k), at, strict=True)
    )
    return q, k, {"rotary_cos": ours_cos, "rotary_sin": ours_sin, "rotary_interleaved": interleaved}


CALLS = {"dense": dense_call, "varlen": varlen_call, "varlen packed": varlen_packed_call, "kvcache": cache_call}
