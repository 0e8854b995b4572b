"""JAX's primitives of a tile, which guard against NaN by conditions inside the program; short, for it is compiled."""

import math
from collections.abc import Callable
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic, allowed_pairs
from attention_xp._engine.tile.products import query_key, weights_value
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["Guarded"]


class Guarded(Arithmetic):
    """Primitives that look at masks, and guard against NaN, by conditions inside the program.

    One program then serves the tiles that rules leave full, on which it does nothing more than without rules, and the
    `mixed` ones. They are never differentiated: the derivative of a loop is another loop.
    """

    def __init__(self, problem: Problem, mixed: Array | bool = True) -> None:
        super().__init__(problem)
        self._mixed = mixed

    def on(self, mixed: Array | bool) -> Self:
        """Return these primitives for a tile on which rules are undecided, or not."""
        return type(self)(self.problem, mixed)

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""
        if exclusive and self.problem.rules:  # a score is made of one key alone; NaN in place of those of infinities
            key = _with_nan(key)
        return query_key(self.problem, query, key, exclusive=False, product=_inner_products)

    def weights_value(self, weights: Array, value: Callable[[], Array], *, exclusive: bool) -> Array:
        """(..., H, m, n) @ (..., Hkv, n, Dv) -> (..., H, m, Dv): the careful product cuts the values out anew."""
        product = partial(weights_value, self.problem, weights, exclusive=False)
        if not exclusive:
            return product(value())
        return _unless_finite(product(_with_nan(value())), lambda: _quarantined(product, value()))

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> Callable[[], Array] | None:
        """Return a function that evaluates the rules: only on tiles that are mixed."""
        return partial(allowed_pairs, rules, region) if rules else None

    def exclude(self, scores: Array, allowed: Callable[[], Array], mixed: Bounds) -> Array:
        """Return the scores with -inf where they are not allowed."""
        return self._where_mixed(lambda: super(Guarded, self).exclude(scores, allowed(), mixed), scores)

    def silence(self, grad_scores: Array, allowed: Callable[[], Array], mixed: Bounds) -> Array:
        """Return the gradients of scores with 0 where they are not allowed, whatever they were."""
        return self._where_mixed(lambda: super(Guarded, self).silence(grad_scores, allowed(), mixed), grad_scores)

    def guarded(self, product: Callable[..., Array], rows: Array, tile: Array, *, exclusive: bool) -> Array:
        """Return a product, by its exclusive version where it is not finite."""
        found = product(rows, tile, exclusive=False)
        return _unless_finite(found, lambda: product(rows, tile, exclusive=True)) if exclusive else found

    def _where_mixed(self, careful: Callable[[], Array], quick: Array) -> Array:
        return careful() if self._mixed is True else jax.lax.cond(self._mixed, careful, lambda: quick)


def _inner_products(query: Array, key: Array) -> Array:
    """(..., m, D) x (..., n, D) -> (..., m, n): as one contraction, for which XLA copies no transposed keys."""
    return jnp.einsum("...md,...nd->...mn", query, key)


# Written in `jax.lax`, for what `jnp` wraps in a program of its own takes several times as long to trace.


def _with_nan(array: Array) -> Array:
    """Return an array with NaN in place of infinities."""
    return jax.lax.select(jax.lax.is_finite(array), array, jax.lax.full_like(array, math.nan))


def _unless_finite(found: Array, careful: Callable[[], Array]) -> Array:
    """Return a product, or what `careful` returns where a factor is not finite: that shows in each row of the product."""
    in_rows = jnp.sum(found, axis=-1)[..., :1]  # of all rows, because it takes longer to compile for a piece
    is_quick = jnp.all(jax.lax.is_finite(in_rows))  # an overflow is taken with care, too
    return jax.lax.cond(is_quick, lambda: found, careful)


def _quarantined(product: Callable[[Array], Array], value: Array) -> Array:
    """Return the product with values of which some are not finite: these count as 0 under a weight of 0.

    A single product gives the output, and where infinity and where minus infinity reach it; NaN counts as both.
    """
    *lead, n, width = value.shape
    shape, axis = (*lead, n, 3, width), len(lead) + 1
    beside = jax.lax.broadcast_in_dim(value, shape, [i for i in range(len(shape)) if i != axis])
    sign = jax.lax.broadcast_in_dim(np.asarray([0, 1, -1], value.dtype), shape, [axis])
    reached = jnp.logical_not(beside * sign < math.inf).astype(value.dtype)
    kept = jax.lax.select(jax.lax.is_finite(beside), beside, jax.lax.full_like(beside, 0.0))
    products = product(jax.lax.select(sign == 0.0, kept, reached).reshape(*lead, n, 3 * width))
    reached = products[..., width:]
    infinite = jax.lax.select(reached > 0.0, jax.lax.full_like(reached, math.inf), jax.lax.full_like(reached, 0.0))
    return products[..., :width] + infinite[..., :width] - infinite[..., width:]
