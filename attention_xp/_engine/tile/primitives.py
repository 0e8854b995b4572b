"""The primitives that the tile steps ask of their walker, which lays out arrays as it likes, and may overwrite them.

A walker has types of its own for keys, for values and for which pairs are allowed: the step passes them on as they came.
"""

from collections.abc import Callable, Sized
from typing import Protocol, TypeVar

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import Base
from attention_xp._scores.region import Region
from attention_xp._typing import Array, Namespace
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = [
    "AllowedT",
    "BackwardPrimitives",
    "ForwardPrimitives",
    "KeyT_contra",
    "Primitives",
    "ScorePrimitives",
    "ValueT_contra",
]

AllowedT = TypeVar("AllowedT", bound=Sized | Callable[[], Array])  # an array, a list, or what gives one; never None
KeyT_contra = TypeVar("KeyT_contra", contravariant=True)
ValueT_contra = TypeVar("ValueT_contra", contravariant=True)


class ScorePrimitives(Protocol):
    """Operations on scores; each may overwrite its first argument."""

    problem: Problem

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y."""

    def multiply(self, x: Array, y: Array | float) -> Array:
        """Return x * y."""

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent."""

    def replace(self, old: Array, new: Array) -> Array:
        """Return `new`, where `old` was."""

    def survivors(self, region: Region) -> Array:
        """Return which weights survive dropout."""

    def thin(self, x: Array, keep: Array) -> Array:
        """Return x with 0 for what does not survive."""


class Primitives(ScorePrimitives, Protocol[AllowedT]):
    """What the forward and the backward step both need for the weights of a tile."""

    xp: Namespace
    base: Base

    def in_base(self, scores: Array) -> Array:
        """Return natural scores in the base."""

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> AllowedT | None:
        """Return which pairs all rules allow; ``None`` is all pairs."""

    def exclude(self, scores: Array, allowed: AllowedT, mixed: Bounds) -> Array:
        """Return the scores with -inf where they are not allowed; `allowed` covers the `mixed` rows."""

    def powers(self, scores: Array, shift: Array | None, allowed: AllowedT | None, mixed: Bounds) -> Array:
        """Return the powers of ``scores - shift``, exactly 0 where not allowed."""


class ForwardPrimitives(Primitives[AllowedT], Protocol[AllowedT, KeyT_contra, ValueT_contra]):
    """The primitives of the forward step."""

    def query_key(self, query: Array, key: KeyT_contra, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""

    def shielded(self, products: Array, query: Array, key: KeyT_contra, allowed: AllowedT) -> Array:
        """Return the products for a function of them, whose derivative must not be NaN where pairs are excluded."""

    def peak(self, so_far: Array, scores: Array) -> Array:
        """Return the largest score of each row, (..., m, 1)."""

    def plus_weights_value(
        self, output: Array | None, weights: Array, value: ValueT_contra, *, exclusive: bool
    ) -> Array:
        """Return ``output + weights @ value``, where ``None`` is nothing yet."""

    def plus_row_sum(self, total: Array | None, weights: Array) -> Array:
        """(..., m, 1) + (..., m, n) -> (..., m, 1), where ``None`` is nothing yet."""

    def divide(self, x: Array, y: Array) -> Array:
        """Return x / y."""


class BackwardPrimitives(Primitives[AllowedT], Protocol[AllowedT]):
    """The primitives of the backward step."""

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""

    def gradient_value(self, gradient: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., H, m, Dv) @ (..., Hkv, n, Dv)^T -> (..., H, m, n)."""

    def silence(self, grad_scores: Array, allowed: AllowedT, mixed: Bounds) -> Array:
        """Return the gradients of scores with 0 where they are not allowed, whatever they were."""

    def query_gradients(self, grad_scores: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n) @ (..., Hkv, n, D) -> (..., H, m, D)."""

    def key_gradients(self, grad_scores: Array, query: Array) -> Array:
        """(..., H, m, n)^T @ (..., H, m, D) -> (..., Hkv, n, D)."""

    def value_gradients(self, weights: Array, gradient: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n)^T @ (..., H, m, Dv) -> (..., Hkv, n, Dv)."""

    def bias_gradients(self, bias: Bias, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Return what the gradients of the scores of a region add to those of the arrays of a bias."""

    def summed(self, grad_scores: Array, shape: tuple[int, ...]) -> Array:
        """Return gradients summed to a shape that broadcasts to theirs."""
