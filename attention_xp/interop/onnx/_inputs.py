"""What ONNX's operators have in common: optional inputs, flags that are ints, and heads that are part of the width."""

from typing import Any

from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_count, check_int
from attention_xp._heads import split
from attention_xp._typing import Array, Namespace

__all__ = ["check_axes", "flag", "heads_first", "namespace_of"]


def namespace_of(required: dict[str, Any], **optional: Any) -> Namespace:
    """Return the one namespace of all inputs that are not left out."""
    return common_namespace(**required, **{name: a for name, a in optional.items() if a is not None})


def flag(name: str, given: Any) -> bool:
    """Return an attribute that is 0 or 1 as a bool, which it may be as well."""
    number = given if isinstance(given, bool) else check_int(name, given)
    if number not in (0, 1):
        raise ValueError(f"{name} must be 0 or 1, got {given}")
    return bool(number)


def check_axes(axes: tuple[int, ...], letters: str, **arrays: Array) -> None:
    """Check that arrays have one of some numbers of axes, and all the same one."""
    (first, like), *_ = arrays.items()
    for name, a in arrays.items():
        if a.ndim not in axes or a.ndim != like.ndim:
            alike = "" if name == first or len(axes) == 1 else f" like {first}"
            counts = " or ".join(map(str, axes))
            raise ValueError(f"{name} must have {counts} axes{alike}: expected {letters}, {shapes(**arrays)}")


def heads_first(xp: Namespace, name: str, a: Array, attribute: str, heads: Any) -> Array:
    """(B, S, H * D) -> (B, H, S, D)."""
    if heads is None:
        raise ValueError(
            f"{attribute} is required where {name} has 3 axes, (B, S, heads * width), {shapes(**{name: a})}"
        )
    check_count(attribute, heads)
    if a.shape[-1] % heads:
        raise ValueError(
            f"{name} has width {a.shape[-1]}, which is not divisible by {attribute}={heads}: expected "
            f"{name} (B, S, heads * width), {shapes(**{name: a})}"
        )
    return split(a, heads, xp)
