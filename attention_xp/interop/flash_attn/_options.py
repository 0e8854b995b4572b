"""What the arguments of flash-attn mean in our terms."""

from numbers import Real
from operator import index
from typing import Any

from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, check_one_dtype, check_placement, shapes
from attention_xp._checks.numbers import check_flag, check_number
from attention_xp._random.draws import check_rate, check_rng
from attention_xp._typing import Array, Namespace
from attention_xp.biases import AlibiBias

__all__ = ["check_arrays", "check_axes", "options_of"]


def check_axes(name: str, array: Any, letters: str) -> None:
    """Check the number of axes of one array; what is none is refused elsewhere."""
    if array.ndim != letters.count(",") + 1:
        raise ValueError(f"{name} has the wrong number of axes: expected {name} {letters}, {shapes(**{name: array})}")


def check_arrays(xp: Namespace, q: Array, k: Array, v: Array, names: tuple[str, str] = ("k", "v")) -> None:
    """Check kinds of three arrays that end in heads and width, and that these fit."""
    key, value = names
    check_one_dtype(xp, query=q, **{key: k, value: v})
    check_placement(xp, q=q, **{key: k, value: v})
    if tuple(v.shape[:-1]) != tuple(k.shape[:-1]):
        raise ValueError(f"{value} must have the shape of {key} but for the width, {shapes(**{key: k, value: v})}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{key} has width {k.shape[-1]} but q has width {q.shape[-1]}: {shapes(q=q, **{key: k})}")
    H, Hkv = q.shape[-2], k.shape[-2]
    if Hkv != H and (0 in (H, Hkv) or H % Hkv):
        raise ValueError(
            f"q has {H} heads, which is not divisible by the {Hkv} heads of {key}: expected q (..., S, H, D) and {key} "
            f"(..., S, Hkv, D), {shapes(q=q, **{key: k})}"
        )


def options_of(
    xp: Namespace,
    q: Array,
    batch: int,
    *,
    softmax_scale: Any,
    causal: Any,
    window_size: Any,
    softcap: Any,
    alibi_slopes: Any,
    deterministic: Any = False,
    dropout_p: Any = 0.0,
    rng: Any = None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Return our options, without where the queries stand; `rows` is the number of these where it is known."""
    found: dict[str, Any] = _window(check_flag("causal", causal), window_size, rows)
    if softmax_scale is not None:
        is_array = not isinstance(softmax_scale, Real) and hasattr(softmax_scale, "dtype")
        found["scale"] = softmax_scale if is_array else check_number("softmax_scale", softmax_scale)
    if check_number("softcap", softcap) > 0.0:
        found["softcap"] = float(softcap)
    if alibi_slopes is not None:
        found["bias"] = _alibi(xp, q, alibi_slopes, batch)
    if check_flag("deterministic", deterministic):
        found["impl"] = "tiled"  # a library's own kernel may add gradients in any order
    check_rng(rng, xp)
    if check_rate(dropout_p, name="dropout_p"):
        found |= {"dropout_rate": dropout_p, "rng": rng}
    return found


def _window(causal: bool, size: Any, rows: int | None) -> dict[str, Any]:
    """Return a window in our form; whatever is negative is open."""
    try:
        left, right = (side if side >= 0 else None for side in map(index, size))
    except (TypeError, ValueError):
        raise ValueError(
            f"window_size must be two ints (left, right), negative for an open side, got {size!r}"
        ) from None
    right = 0 if causal else right
    if rows == 1:  # nothing stands behind a single row, which is aligned with the last key
        right = None
    if left is None and right is None:
        return {}
    return {"is_causal": True} if (left, right) == (None, 0) else {"window": (left, right)}


def _alibi(xp: Namespace, q: Array, slopes: Any, batch: int) -> AlibiBias:
    common_namespace(q=q, alibi_slopes=slopes)
    check_floating(xp, alibi_slopes=slopes)
    check_placement(xp, q=q, alibi_slopes=slopes)
    H = q.shape[-2]
    if tuple(slopes.shape) not in ((H,), (batch, H)):
        raise ValueError(
            f"alibi_slopes must hold one number per head, or per batch item and head: expected (H,) = {(H,)} or (B, H) = "
            f"{(batch, H)}, {shapes(alibi_slopes=slopes)}"
        )
    return AlibiBias(slopes)
