"""The formula of attention in float64 NumPy, with every option, as plainly as it can be said.

Nothing here is shared with the package. Nothing is drawn either: where dropout is wanted, `keep` tells
which weights survive, in the shape of the scores.
"""

from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """What attention gives: ``(..., H, Sq, Dv)``, ``(..., H, Sq, Sk)`` and ``(..., H, Sq)``."""

    output: np.ndarray
    weights: np.ndarray
    lse: np.ndarray


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: Any = None, **options: Any) -> Result:
    """Compute attention one query row at a time; inputs with 2 or 3 axes have no heads."""
    ndim = query.ndim
    query, key, value = (_with_heads(np.asarray(x, np.float64)) for x in (query, key, value))
    batch = np.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    q, k, v = (_flat(x, batch) for x in (query, key, value))
    heads, group = q.shape[1], q.shape[1] // max(k.shape[1], 1)
    options = {"scale": max(query.shape[-1], 1) ** -0.5} | {
        name: given for name, given in options.items() if given is not None
    }
    options = _flat_options(options, mask, ndim, (*batch, heads, q.shape[2], k.shape[2]))
    rows = [
        _row(q[b, h, i], k[b, h // group], v[b, h // group], b, h, i, options)
        for b in range(q.shape[0])
        for h in range(heads)
        for i in range(q.shape[2])
    ]
    shape = (*batch, heads, q.shape[2])
    output = np.array([r.output for r in rows]).reshape(*shape, v.shape[3])
    weights = np.array([r.weights for r in rows]).reshape(*shape, k.shape[2])
    lse = np.array([r.lse for r in rows]).reshape(shape)
    added = {2: (0, 1), 3: (1,)}.get(ndim, ())
    return Result(*(np.squeeze(x, axis=added) for x in (output, weights, lse)))


def _row(q: np.ndarray, k: np.ndarray, v: np.ndarray, b: int, h: int, i: int, options: dict[str, Any]) -> Result:
    """Attend one query row, step by step in the promised order."""
    nothing = Result(np.zeros(v.shape[1]), np.zeros(k.shape[0]), np.float64(-np.inf))
    if i >= options["query_lengths"][b]:
        return nothing
    allowed = _allowed(b, h, i, k.shape[0], options)
    score = (k[allowed] @ q) * options["scale"]
    if options["softcap"] is not None:
        score = options["softcap"] * np.tanh(score / options["softcap"])
    if options["score_mod"] is not None:
        indices = (np.asarray(n) for n in (b, h, options["query_offset"][b] + i, np.flatnonzero(allowed)))
        score = options["score_mod"](score, *indices)
    score = score + options["bias"][b, h, i, allowed] + options["float_mask"][b, h, i, allowed]
    logits = score if options["sinks"] is None else np.append(score, options["sinks"][h])
    largest = logits.max(initial=-np.inf)
    if largest == -np.inf:
        return nothing
    total = np.exp(logits - largest).sum()
    weights = np.zeros(k.shape[0])
    weights[allowed] = np.exp(score - largest) / total
    weights = np.where(options["keep"][b, h, i], weights / (1.0 - options["dropout_rate"]), 0.0)
    return Result(weights[allowed] @ v[allowed], weights, largest + np.log(total))


def _allowed(b: int, h: int, i: int, keys: int, options: dict[str, Any]) -> np.ndarray:
    """Which keys the query in row `i` may attend."""
    position = options["query_offset"][b] + i
    j = np.arange(keys)
    allowed = (j < options["key_lengths"][b]) & options["bool_mask"][b, h, i]
    allowed &= options["float_mask"][b, h, i] != -np.inf
    if options["is_causal"]:
        allowed &= j <= position
    left, right = options["window"]
    if left is not None:
        allowed &= j >= position - left
    if right is not None:
        allowed &= j <= position + right
    return allowed


def _with_heads(x: np.ndarray) -> np.ndarray:
    """Give 2-D and 3-D input the axes ``(B, H)`` of length 1 that it lacks."""
    if x.ndim == 2:
        return x[None, None]
    return x[:, None] if x.ndim == 3 else x


def _flat(x: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """Broadcast the leading axes and make them one."""
    return np.broadcast_to(x, (*batch, *x.shape[-3:])).reshape(int(np.prod(batch)), *x.shape[-3:])


def _flat_options(options: dict[str, Any], mask: Any, ndim: int, scores: tuple[int, ...]) -> dict[str, Any]:
    """Fill in the defaults and broadcast every array option to flat scores."""
    batch, (queries, keys) = scores[:-3], scores[-2:]
    window, sinks = options.get("window"), options.get("sinks")
    is_bool = mask is not None and mask.dtype == bool
    return {
        "scale": options["scale"],
        "softcap": options.get("softcap"),
        "score_mod": options.get("score_mod"),
        "is_causal": options.get("is_causal", False),
        "window": window if isinstance(window, tuple) else (window, window),
        "sinks": None if sinks is None else np.ravel(sinks).astype(np.float64),
        "query_offset": np.broadcast_to(options.get("query_offset", 0), batch).ravel(),
        "query_lengths": np.broadcast_to(options.get("query_lengths", queries), batch).ravel(),
        "key_lengths": np.broadcast_to(options.get("key_lengths", keys), batch).ravel(),
        "bool_mask": _to_scores(mask if is_bool else True, ndim, scores),
        "float_mask": _to_scores(0.0 if is_bool or mask is None else mask, ndim, scores),
        "bias": _to_scores(options.get("bias", 0.0), ndim, scores),
        "keep": _to_scores(options.get("keep", True), ndim, scores),
        "dropout_rate": options.get("dropout_rate", 0.0),
    }


def _to_scores(array: Any, ndim: int, scores: tuple[int, ...]) -> np.ndarray:
    """Align an array with the scores and broadcast it to them, leading axes flat."""
    aligned = align(np.asarray(array), ndim)
    if ndim == 3 and aligned.ndim == 3:
        aligned = aligned[:, None]
    return np.broadcast_to(aligned, scores).reshape(int(np.prod(scores[:-3])), *scores[-3:])


def align(array: np.ndarray, ndim: int) -> np.ndarray:
    """Drop surplus axes of length 1, the heads axis first where the scores have none."""
    while array.ndim > ndim:
        candidates = [0] if ndim > 3 else [array.ndim - 3, 0]
        array = np.squeeze(array, axis=next(a for a in candidates if array.shape[a] == 1))
    return array
