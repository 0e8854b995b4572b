"""One attention call, whole and checked: after `Problem.of` nobody checks again."""

import math
import operator
from dataclasses import dataclass
from typing import Any

from attention_xp._backend import (
    common_namespace,
    computation_dtype,
    dtype_name,
    is_boolean,
    is_floating,
)
from attention_xp._engine.checks import (
    check_floating,
    check_inputs,
    check_integers,
    check_number,
    check_placement,
    fits,
    shapes,
)
from attention_xp._engine.rules import ArrayMask, RowMask
from attention_xp._options import AttentionOptions, complete
from attention_xp._random import check_rate, check_rng, seed_words
from attention_xp._typing import Array, DType, Namespace, ScoreMod
from attention_xp.masks import CausalMask, LengthMask, Mask, WindowMask

__all__ = ["Problem"]

IMPLEMENTATIONS = ("auto", "dense", "tiled", "fused")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wanted, in the letters of the documentation; arrays are aligned with the scores."""

    xp: Namespace
    query: Array  # (*batch, H, Sq, D), or without H
    key: Array  # (..., Hkv, Sk, D)
    value: Array  # (..., Hkv, Sk, Dv)
    dtype: DType  # of the computation; the result has that of the query
    batch: tuple[int, ...]
    heads: int | None
    group: int  # query heads per key/value head
    scale: float
    softcap: float | None
    score_mod: ScoreMod | None
    addends: tuple[Array, ...]  # bias and float mask
    rules: tuple[Mask, ...]  # a pair is allowed where all of them allow it
    sinks: Array | None  # (H, 1, 1), or (1, 1)
    query_offset: int | Array | None
    query_lengths: int | Array | None
    dropout_rate: float
    seed: tuple[Any, Any] | None
    impl: str
    tile: tuple[int, int] | None

    @property
    def ndim(self) -> int:
        """Number of axes of the scores."""
        return int(self.query.ndim)

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes of the result: batch, then heads where there are heads."""
        return self.batch if self.heads is None else (*self.batch, self.heads)

    @property
    def never_empty(self) -> bool:
        """Whether every row is sure to attend something, so that its weights have a positive sum."""
        return self.key.shape[-2] > 0 and len(self.rules) == len(self.addends) == 0 and self.score_mod is None

    @classmethod
    def of(
        cls,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | Mask | None,
        dropout_rate: float,
        options: AttentionOptions,
    ) -> "Problem":
        """Check a call and line everything up with the scores."""
        o = complete(options)
        bias, sinks = o["bias"], o["sinks"]
        mask_array = None if isinstance(mask, Mask) else mask
        xp = _namespace(query, key, value, mask_array, o)
        sizes = check_inputs(xp, query, key, value)
        batch, heads = sizes.batch, sizes.heads
        dtype = computation_dtype(xp, query.dtype)
        lead = batch if heads is None else (*batch, heads)
        target = (*lead, query.shape[-2], key.shape[-2])
        rate = check_rate(dropout_rate, name="dropout_rate")
        addends = [] if bias is None else [_additive(xp, "bias", bias, query, target, heads, dtype)]
        rules = _rules(xp, query, key, batch, mask, o)
        if mask_array is not None:
            array = _aligned_mask(xp, mask_array, query, target, heads)
            if not is_boolean(xp, array.dtype):
                array = xp.astype(array, dtype, copy=False)
                addends.append(array)
                array = array != -math.inf
            rules.append(ArrayMask(array))
        check_rng(o["rng"], xp)
        return cls(
            xp=xp,
            query=query if tuple(query.shape[: len(batch)]) == batch else _spread(xp, query, batch),
            key=key,
            value=value,
            dtype=dtype,
            batch=batch,
            heads=heads,
            group=1 if heads == sizes.kv_heads or heads is None else heads // (sizes.kv_heads or 1),
            scale=_scale(o["scale"], query.shape[-1]),
            softcap=_softcap(o["softcap"]),
            score_mod=_callable_or_none(o["score_mod"]),
            addends=tuple(addends),
            rules=tuple(rules),
            sinks=None if sinks is None else _sinks(xp, sinks, query, heads, dtype),
            query_offset=check_integers(xp, "query_offset", o["query_offset"], batch),
            query_lengths=check_integers(
                xp, "query_lengths", o["query_lengths"], batch, low=0, high=query.shape[-2]
            ),
            dropout_rate=rate,
            seed=seed_words(o["rng"], query, xp=xp) if rate else None,
            impl=_impl(o["impl"]),
            tile=_tile(o["tile"]),
        )


_ARRAY_OPTIONS = ("bias", "sinks", "query_offset", "query_lengths", "key_lengths")


def _namespace(query: Array, key: Array, value: Array, mask: Any, o: AttentionOptions) -> Namespace:
    arrays = {"query": query, "key": key, "value": value}
    if mask is not None:
        arrays["mask"] = mask
    for name in _ARRAY_OPTIONS:
        given = o[name]  # type: ignore[literal-required]
        if given is not None and (name in ("bias", "sinks") or hasattr(given, "ndim")):
            arrays[name] = given
    scalars = [name for name in arrays if name not in ("query", "key", "value") and _is_index(arrays[name])]
    for name in scalars:
        del arrays[name]
    return common_namespace(**arrays)


def _is_index(given: Any) -> bool:
    """Whether `given` is an integer scalar of NumPy, which stands for a plain int."""
    return isinstance(given, int) or (hasattr(given, "__index__") and not hasattr(given, "__dlpack__"))


def _spread(xp: Namespace, query: Array, batch: tuple[int, ...]) -> Array:
    return xp.broadcast_to(query, (*batch, *query.shape[len(batch) :]))


def _rules(
    xp: Namespace, query: Array, key: Array, batch: tuple[int, ...], mask: Any, o: AttentionOptions
) -> list[Mask]:
    rules: list[Mask] = []
    if _flag("is_causal", o["is_causal"]):
        rules.append(CausalMask())
    if o["window"] is not None:
        rules.append(WindowMask(*_window(o["window"])))
    if isinstance(mask, Mask):
        rules.append(mask)
    Sq, Sk = query.shape[-2], key.shape[-2]
    if Sq != Sk and o["query_offset"] is None and any(rule.relative for rule in rules):
        raise ValueError(
            f"query_offset is required with a causal or window mask where Sq != Sk: expected query_offset=0 "
            f"(aligned top-left) or query_offset=Sk - Sq (aligned bottom-right), {shapes(query=query, key=key)}"
        )
    lengths = check_integers(xp, "key_lengths", o["key_lengths"], batch, low=0, high=Sk)
    if lengths is not None:
        rules.append(LengthMask(lengths))
    lengths = check_integers(xp, "query_lengths", o["query_lengths"], batch, low=0, high=Sq)
    if lengths is not None:
        rules.append(RowMask(lengths))
    return rules


def _window(window: Any) -> tuple[int | None, int | None]:
    sides = window if isinstance(window, tuple | list) else (window, window)
    if len(sides) != 2 or any(isinstance(s, bool) or not (s is None or hasattr(s, "__index__")) for s in sides):
        raise TypeError(f"window must be None, an int or a pair (left, right) of int or None, got {window!r}")
    left, right = (s if s is None else operator.index(s) for s in sides)
    return left, right


def _flag(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be a bool, got {type(given).__name__}")
    return given


def _aligned_mask(
    xp: Namespace, mask: Array, query: Array, target: tuple[int, ...], heads: int | None
) -> Array:
    if not (is_boolean(xp, mask.dtype) or is_floating(xp, mask.dtype)):
        raise TypeError(
            f"mask must be boolean (True = may attend) or floating (added to the scores), got {dtype_name(mask.dtype)}"
        )
    return _aligned(xp, "mask", mask, query, target, heads)


def _additive(
    xp: Namespace, name: str, array: Array, query: Array, target: tuple[int, ...], heads: int | None, dtype: DType
) -> Array:
    check_floating(xp, **{name: array})
    return xp.astype(_aligned(xp, name, array, query, target, heads), dtype, copy=False)


def _aligned(
    xp: Namespace, name: str, array: Array, query: Array, target: tuple[int, ...], heads: int | None
) -> Array:
    """Drop the surplus axes of an array whose shape must broadcast to the scores."""
    check_placement(xp, query, **{name: array})
    shape = tuple(array.shape)
    if len(shape) > len(target):
        shape = _drop_surplus(shape, len(target), has_heads=heads is not None)
    if not fits(shape, target):
        letters = "(..., H, Sq, Sk)" if heads is not None else "(..., Sq, Sk)"
        raise ValueError(
            f"{name} does not broadcast to the scores: expected {name} {letters} = {target}, "
            f"{shapes(**{name: array})}"
        )
    return array if shape == tuple(array.shape) else xp.reshape(array, shape)


def _drop_surplus(shape: tuple[int, ...], ndim: int, *, has_heads: bool) -> tuple[int, ...]:
    if not has_heads and shape[-3] == 1:
        shape = (*shape[:-3], *shape[-2:])
    while len(shape) > ndim and shape[0] == 1:
        shape = shape[1:]
    return shape


def _scale(scale: Any, width: int) -> float:
    if scale is not None:
        return check_number("scale", scale)
    return 1.0 / math.sqrt(width) if width else 1.0


def _softcap(softcap: Any) -> float | None:
    if softcap is None:
        return None
    softcap = check_number("softcap", softcap)
    if softcap <= 0.0:
        raise ValueError(f"softcap must be positive, got {softcap}")
    return softcap


def _callable_or_none(score_mod: Any) -> ScoreMod | None:
    if score_mod is not None and not callable(score_mod):
        raise TypeError(
            f"score_mod must be callable as f(score, b, h, q_idx, kv_idx), got {type(score_mod).__name__}"
        )
    return score_mod  # type: ignore[no-any-return]


def _sinks(xp: Namespace, sinks: Array, query: Array, heads: int | None, dtype: DType) -> Array:
    check_floating(xp, sinks=sinks)
    check_placement(xp, query, sinks=sinks)
    expected = () if heads is None else (heads,)
    if tuple(sinks.shape) != expected:
        raise ValueError(
            f"sinks must hold one logit per head: expected sinks {'()' if heads is None else f'(H,) = {expected}'}, "
            f"{shapes(query=query, sinks=sinks)}"
        )
    return xp.reshape(xp.astype(sinks, dtype, copy=False), (*expected, 1, 1))


def _impl(impl: Any) -> str:
    if not isinstance(impl, str):
        raise TypeError(f"impl must be a str, got {type(impl).__name__}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    return impl


def _tile(tile: Any) -> tuple[int, int] | None:
    if tile is None:
        return None
    if not isinstance(tile, tuple | list) or len(tile) != 2 or any(
        isinstance(n, bool) or not hasattr(n, "__index__") for n in tile
    ):
        raise TypeError(f"tile must be a pair of ints (query rows, key columns), got {tile!r}")
    rows, columns = (operator.index(n) for n in tile)
    if rows < 1 or columns < 1:
        raise ValueError(f"tile must be positive in both directions, got {tile}")
    return rows, columns
