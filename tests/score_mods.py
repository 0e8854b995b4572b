"""Functions that modify scores, for any namespace."""

from collections.abc import Callable
from typing import Any

__all__ = ["bent", "causal_by_infinity", "distance_penalty", "with_derivative"]


def distance_penalty(xp: Any) -> Callable[..., Any]:
    """Return a score_mod that uses every argument it is given."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = xp.astype(q_idx - kv_idx + 2 * h - b, score.dtype)
        return 0.5 * score - 0.125 * xp.abs(distance)

    return score_mod


def causal_by_infinity(xp: Any) -> Callable[..., Any]:
    """Return a score_mod that excludes later keys with ``-inf``."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return xp.where(kv_idx <= q_idx, score, xp.full_like(score, float("-inf")))

    return score_mod


def bent(xp: Any) -> Callable[..., Any]:
    """Return a score_mod that is no straight line."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        slope = xp.astype(1 + h + (q_idx + kv_idx) % 3, score.dtype)
        return score + 0.25 * xp.sin(score * slope)

    return score_mod


def _bent_slope(xp: Any) -> Callable[..., Any]:
    def derivative(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        slope = xp.astype(1 + h + (q_idx + kv_idx) % 3, score.dtype)
        return 1.0 + 0.25 * slope * xp.cos(score * slope)

    return derivative


def with_derivative(xp: Any, score_mod: Callable[[Any], Callable[..., Any]]) -> Any:
    """Return a score_mod of this module as a pair with its derivative."""
    if score_mod is bent:
        return bent(xp), _bent_slope(xp)
    return score_mod(xp), lambda score, b, h, q_idx, kv_idx: 0.5 * xp.ones_like(score)
