"""Calls with one option or several, as every strategy must compute them: the whole, and what a rank is given of it."""

import itertools
from collections.abc import Callable
from functools import reduce
from operator import and_
from typing import Any

import numpy as np

from attention_xp.biases import AlibiBias, RelativePositionBias
from attention_xp.masks import CausalMask, FunctionMask, PrefixMask, SegmentMask, WindowMask
from tests._inputs import normal
from tests.score_mods import bent, with_derivative

S, B, H, HKV, D, DV = 16, 2, 4, 2, 8, 6
KEEP, BIAS = normal(B, 1, S, S, seed=5) > -0.8, normal(B, H, S, S, seed=6)
SEGMENTS = np.repeat(np.arange(4), [3, 6, 2, 5])


def inputs(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Query, key, value and a gradient of the output."""
    shapes = (B, H, S, D), (B, HKV, S, D), (B, HKV, S, DV), (B, H, S, DV)
    return tuple(normal(*shape, seed=seed + i) for i, shape in enumerate(shapes))


def diagonals(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Leave out every third diagonal."""
    return (q_idx + kv_idx + b + h) % 3 != 0


# Of arrays of the library (``make``) and the positions of a rank's own rows: its options.
CALLS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "nothing": lambda make, rows: {},
    "causal": lambda make, rows: {"is_causal": True},
    "window": lambda make, rows: {"window": (3, 1)},
    "causal window": lambda make, rows: {"is_causal": True, "window": (4, None)},
    "prefix": lambda make, rows: {"mask": CausalMask() | PrefixMask(make(np.asarray([4, 1])))},
    "segments": lambda make, rows: {"mask": SegmentMask(make(SEGMENTS)) | WindowMask(1, 1)},
    "function": lambda make, rows: {"mask": FunctionMask(diagonals)},
    "function of items": lambda make, rows: {"mask": FunctionMask(lambda b, h, q, k: (b == 1) | (q >= k + h))},
    "lengths": lambda make, rows: {
        "key_lengths": make(np.asarray([11, 6])),
        "query_lengths": make(np.asarray([13, 5])),
    },
    "plain lengths": lambda make, rows: {"key_lengths": 9, "query_lengths": 7, "is_causal": True},
    "array": lambda make, rows: {"mask": make(KEEP[:, :, rows])},
    "array in a rule": lambda make, rows: {"mask": CausalMask() | make(KEEP[:, :, rows])},
    "padding": lambda make, rows: {"mask": make(KEEP[:, :, :1])},
    "bias": lambda make, rows: {"bias": make(BIAS[:, :, rows]), "mask": make(np.where(KEEP, 0.5, -np.inf)[:, :, rows])},
    "alibi": lambda make, rows: {"bias": AlibiBias(make(normal(H))), "is_causal": True},
    "relative": lambda make, rows: {"bias": RelativePositionBias(make(normal(8, H)), max_distance=6)},
    "dropout": lambda make, rows: {"dropout_rate": 0.4, "rng": 7, "window": (6, None)},
    "scores": lambda make, rows: {"score_mod": with_derivative(make.xp, bent), "softcap": 3.0},
    "sinks": lambda make, rows: {"sinks": make(normal(H)), "is_causal": True},
    "sinks alone": lambda make, rows: {"sinks": make(normal(H)), "mask": PrefixMask(0)},
    "offset": lambda make, rows: {"is_causal": True, "query_offset": 3, "key_offset": 1},
    "ids": lambda make, rows: {
        "item_ids": make(np.asarray([5, 3])),
        "head_ids": make(np.asarray([6, 1, 0, 4])),
        "mask": FunctionMask(diagonals),
    },
    "all": lambda make, rows: {
        "mask": CausalMask() | PrefixMask(2),
        "window": (9, 9),
        "bias": AlibiBias(make(normal(H))),
        "key_lengths": make(np.asarray([14, 9])),
        "sinks": make(normal(H, seed=1)),
        "softcap": 4.0,
        "score_mod": with_derivative(make.xp, bent),
        "dropout_rate": 0.3,
        "rng": 11,
    },
}

# What calls are combined of: the kinds of each thing, one of them for a call.
FACTORS: dict[str, list[str]] = {
    "layout": ["zigzag", "contiguous"],
    "bias": ["no bias", "array bias", "alibi", "relative"],
    **{
        name: [f"no {name}", name] for name in ("causal", "window", "prefix", "segments", "function", "array", "logits")
    },
    **{
        name: [f"no {name}", name]
        for name in ("lengths", "dropout", "scores", "softcap", "sinks", "offset", "ids", "scale")
    },
}
_RULES = ("prefix", "segments", "function", "array")
_MORE: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "array bias": lambda make, rows: {"bias": make(BIAS[:, :, rows])},
    "alibi": lambda make, rows: {"bias": AlibiBias(make(normal(H)))},
    "window": lambda make, rows: {"window": (9, 5)},
    "prefix": lambda make, rows: {"mask": CausalMask() | PrefixMask(make(np.asarray([9, 5])))},
    "segments": lambda make, rows: {"mask": SegmentMask(make(SEGMENTS)) | WindowMask(4, 4)},
    "logits": lambda make, rows: {"mask": make(np.where(KEEP, 0.5, -np.inf)[:, :, rows])},
    "dropout": lambda make, rows: {"dropout_rate": 0.4, "rng": 7},
    "scores": lambda make, rows: {"score_mod": with_derivative(make.xp, bent)},
    "softcap": lambda make, rows: {"softcap": 3.0},
    "sinks": lambda make, rows: {"sinks": make(normal(H))},
    "offset": lambda make, rows: {"query_offset": 3, "key_offset": 1},
    "ids": lambda make, rows: {"item_ids": make(np.asarray([5, 3])), "head_ids": make(np.asarray([6, 1, 0, 4]))},
    "scale": lambda make, rows: {"scale": make(np.asarray(0.3))},
}


# Few calls in which every two kinds occur together that can, and so does every option without every other one.
COVERING = [
    "contiguous, alibi, causal, lengths, dropout, scores, softcap, sinks, offset, ids, scale",
    "zigzag, array bias, window, prefix, segments, function",
    "contiguous, relative, window, prefix, array, scores, offset, ids, scale",
    "contiguous, causal, logits, lengths, dropout, sinks",
    "zigzag, relative, causal, segments, function, array, lengths, dropout, scores, softcap, ids",
    "contiguous, window, prefix, segments, function, array, lengths, softcap, sinks, offset, ids, scale",
    "zigzag, array bias, causal, prefix, array, dropout, scores, softcap, sinks, offset, scale",
    "zigzag, alibi, logits, softcap, scale",
    "contiguous, array bias, causal, window, logits, dropout, scores, softcap, sinks, offset, ids",
    "contiguous, alibi, window, prefix, segments, function, array, lengths, dropout, sinks, offset, ids",
    "zigzag, causal, prefix, function, array, scores, softcap, offset, ids, scale",
    "zigzag, relative, causal, segments, lengths, sinks",
    "contiguous, array bias, causal, prefix, function, array, lengths, scores, sinks, offset, scale",
    "contiguous, relative, window, logits",
]


def kinds_of(name: str) -> tuple[str, ...]:
    """The kind of each thing in a combined call."""
    given = name.split(", ")
    return tuple(next((kind for kind in kinds if kind in given), kinds[0]) for kinds in FACTORS.values())


def possible_pairs() -> set[tuple[str, ...]]:
    """The pairs of kinds that a call can have: where the mask is an array that is added, it is no rule as well."""
    pairs = {pair for kinds in itertools.combinations(FACTORS.values(), 2) for pair in itertools.product(*kinds)}
    return {pair for pair in pairs if "logits" not in pair or not set(_RULES) & set(pair)}


def _combined(kinds: tuple[str, ...]) -> Callable[[Any, Any], dict[str, Any]]:
    known = CALLS | _MORE
    makers = [known[kind] for kind in kinds if kind in known]

    def made(make: Any, rows: Any) -> dict[str, Any]:
        parts = [maker(make, rows) for maker in makers]
        masks = [part.pop("mask") for part in parts if "mask" in part]
        options = {name: given for part in parts for name, given in part.items()}
        return {**options, "mask": reduce(and_, masks)} if masks else options

    return made


COMBINED = {name: _combined(kinds_of(name)) for name in COVERING}
