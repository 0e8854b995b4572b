"""Complaints about arrays, raised from static shapes and types before any arithmetic."""

from typing import Any, Literal, NamedTuple

from attention_xp._backend.autocast import may_differ
from attention_xp._backend.dtypes import dtype_name, is_alike, is_boolean, is_floating, is_integer
from attention_xp._backend.libraries import same_device, to_array_of
from attention_xp._checks.numbers import check_count
from attention_xp._typing import Array, Namespace

__all__ = [
    "Sizes",
    "check_floating",
    "check_inputs",
    "check_integers",
    "check_one_dtype",
    "check_placement",
    "check_result",
    "check_width",
    "fits",
    "shapes",
]

_LETTERS = {
    "query": ("(Sq, D)", "(B, Sq, D)", "(..., H, Sq, D)"),
    "key": ("(Sk, D)", "(B, Sk, D)", "(..., Hkv, Sk, D)"),
    "value": ("(Sk, Dv)", "(B, Sk, Dv)", "(..., Hkv, Sk, Dv)"),
}


class Sizes(NamedTuple):
    """What the shapes of query, key and value agree on."""

    batch: tuple[int, ...]
    heads: int | None
    kv_heads: int | None


def shapes(**arrays: Array) -> str:
    """Render ``got query (2, 8, 10, 64), key (2, 8, 10, 32)``."""
    return "got " + ", ".join([f"{name} {tuple(a.shape)}" for name, a in arrays.items()])


def _letters(name: str, ndim: int) -> str:
    return f"{name} {_LETTERS[name][min(max(ndim, 2), 4) - 2]}"


def check_floating(xp: Namespace, **arrays: Array) -> None:
    """Refuse dtypes that attention is not computed for."""
    for name, a in arrays.items():
        if not is_floating(xp, a.dtype):
            raise TypeError(
                f"{name} must be a floating array (float16, bfloat16, float32 or float64), got {dtype_name(a.dtype)}"
            )


def check_integers(xp: Namespace, name: str, given: Any, expected: str = "an integer array") -> None:
    """Refuse what is no integer array."""
    if not hasattr(given, "dtype") or not is_integer(xp, given.dtype):
        kind = dtype_name(given.dtype) if hasattr(given, "dtype") else type(given).__name__
        hint = to_array_of(name, given) if isinstance(given, list | tuple) else ""
        raise TypeError(f"{name} must be {expected}, got {kind}{hint}")


def check_one_dtype(xp: Namespace, *, query: Array, **others: Array) -> None:
    """Refuse dtypes that attention is not computed for, and any but that of the query where torch does not mix them."""
    check_floating(xp, query=query, **others)
    for name, a in others.items():
        if not is_alike(a.dtype, query.dtype) and not may_differ(xp, query, a):
            raise TypeError(
                f"{name} is {dtype_name(a.dtype)} but query is {dtype_name(query.dtype)}: expected one dtype"
            )


def check_result(
    xp: Namespace, name: str, result: Any, sizes: tuple[int, ...], kind: Literal["floating", "boolean"] = "floating"
) -> None:
    """Refuse what a function of the caller made of a region, unless it is of a kind and broadcasts to its scores."""
    is_right = is_boolean if kind == "boolean" else is_floating
    if not hasattr(result, "dtype") or not is_right(xp, result.dtype):
        given = dtype_name(result.dtype) if hasattr(result, "dtype") else type(result).__name__
        raise TypeError(f"{name} must return a {kind} array, got {given}")
    if not fits(tuple(result.shape), sizes):
        raise ValueError(
            f"{name} must broadcast to the scores of a region: expected {sizes}, got {tuple(result.shape)}"
        )


def check_placement(xp: Namespace, **arrays: Array) -> None:
    """Refuse arrays that live on another device than the first."""
    (first, like), *others = arrays.items()
    for name, a in others:
        if not same_device(xp, like, a):
            raise ValueError(f"{name} is on {a.device} but {first} is on {like.device}: expected one device")


def check_inputs(xp: Namespace, query: Array, key: Array, value: Array) -> Sizes:
    """Check kinds and shapes of the three inputs and return what they agree on."""
    check_one_dtype(xp, query=query, key=key, value=value)
    check_placement(xp, query=query, key=key, value=value)
    _check_axes(query, key, value)
    if query.ndim < 4:
        heads, kv_heads, lead = None, None, query.ndim - 2
    else:
        heads, kv_heads, lead = query.shape[-3], key.shape[-3], query.ndim - 3
        _check_heads(query, key, value)
    return Sizes(_batch(query, key, value, lead), heads, kv_heads)


def _check_axes(query: Array, key: Array, value: Array) -> None:
    for name, a in (("query", query), ("key", key), ("value", value)):
        if a.ndim < 2:
            raise ValueError(
                f"{name} needs at least 2 axes: expected {_letters(name, 2)}, {_letters(name, 3)} or "
                f"{_letters(name, 4)}, {shapes(**{name: a})}"
            )
    for name, a in (("key", key), ("value", value)):
        if a.ndim != query.ndim:
            raise ValueError(
                f"{name} has {a.ndim} axes but query has {query.ndim}: "
                f"expected {_letters(name, query.ndim)}, {shapes(query=query, **{name: a})}"
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key has width {key.shape[-1]} but query has width {query.shape[-1]}: "
            f"expected {_letters('key', key.ndim)}, {shapes(query=query, key=key)}"
        )
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"value has length {value.shape[-2]} but key has length {key.shape[-2]}: "
            f"expected {_letters('value', value.ndim)}, {shapes(key=key, value=value)}"
        )


def _check_heads(query: Array, key: Array, value: Array) -> None:
    heads, kv_heads, value_heads = query.shape[-3], key.shape[-3], value.shape[-3]
    if value_heads != kv_heads:
        raise ValueError(
            f"value has {value_heads} heads but key has {kv_heads}: "
            f"expected {_letters('value', 4)}, {shapes(key=key, value=value)}"
        )
    if heads != kv_heads and (0 in (heads, kv_heads) or heads % kv_heads):
        raise ValueError(
            f"query has {heads} heads, which is not divisible by the {kv_heads} heads of key: "
            f"expected {_letters('query', 4)}, heads before the sequence, with H a multiple of Hkv, "
            f"{shapes(query=query, key=key)}"
        )


def _batch(query: Array, key: Array, value: Array, lead: int) -> tuple[int, ...]:
    leading = [tuple(a.shape[:lead]) for a in (query, key, value)]
    if leading[0] == leading[1] == leading[2]:
        return leading[0]
    batch = tuple(_broadcast(sizes) for sizes in zip(*leading, strict=True))
    for sizes in leading:
        if not fits(sizes, batch):
            raise ValueError(
                f"leading axes of query, key and value do not broadcast: expected "
                f"{_letters('query', query.ndim)}, {_letters('key', query.ndim)}, {_letters('value', query.ndim)}, "
                f"{shapes(query=query, key=key, value=value)}"
            )
    return batch


def _broadcast(sizes: tuple[int, ...]) -> int:
    return next((n for n in sizes if n != 1), 1)


def fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether `shape` broadcasts, right-aligned, to `target` without enlarging it."""
    return len(shape) <= len(target) and all(
        n == 1 or n == m  # noqa: PLR1714  # `in` asks for identity first, which no trace can tell
        for n, m in zip(reversed(shape), reversed(target), strict=False)
    )


def check_width(d_model: Any, **arrays: Array) -> None:
    """Check that `d_model` is the width of every array; what is no array is refused later."""
    check_count("d_model", d_model)
    for name, a in arrays.items():
        shape = tuple(getattr(a, "shape", ()))
        if shape and shape[-1] != d_model:
            raise ValueError(
                f"{name} has width {shape[-1]} but d_model is {d_model}: expected {name} (..., S, d_model), "
                f"{shapes(**{name: a})}"
            )
