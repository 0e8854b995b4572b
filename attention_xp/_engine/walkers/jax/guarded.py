"""JAX's primitives of a tile, which guard against NaN by conditions inside the program; short, for it is compiled."""

import math
from collections.abc import Callable
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic, allowed_pairs
from attention_xp._engine.tile.products import query_key, weights_value
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["TURNS", "Guarded", "Turn"]

TURNS = 4  # of a tile: its values as they are; where some are not finite, the others, and where infinity and -infinity are


class Guarded(Arithmetic):
    """Primitives that look at masks, and guard against NaN, by conditions inside the program.

    One program then serves the tiles that rules leave full, on which it does nothing more than without rules, and the
    `mixed` ones. They are never differentiated: the derivative of a loop is another loop.
    """

    def __init__(self, problem: Problem, mixed: Array | bool = True, turn: "Turn | None" = None) -> None:
        super().__init__(problem)
        self._mixed, self._turn = mixed, turn

    def on(self, mixed: Array | bool, turn: "Turn | None" = None) -> Self:
        """Return these primitives for a tile on which rules are undecided, or not; and for one of its turns."""
        return type(self)(self.problem, mixed, turn)

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""
        if exclusive and self.problem.rules:  # a score is made of one key alone; NaN in place of those of infinities
            key = _with_nan(key)
        return query_key(self.problem, query, key, exclusive=False, product=_inner_products)

    def plus_row_sum(self, total: Array | None, weights: Array) -> Array:
        """(..., m, 1) + (..., m, n) -> (..., m, 1): in the first turn alone."""
        sums = self.row_sum(weights)
        if self._turn is not None:
            sums = jax.lax.select(self._turn.is_first, sums, jax.lax.full_like(sums, 0.0))
        return sums if total is None else self.add(total, sums)

    def plus_weights_value(self, output: Array | None, weights: Array, value: Array, *, exclusive: bool) -> Array:
        """Return ``output + weights @ value``, or what a turn adds."""
        if self._turn is None:
            return super().plus_weights_value(output, weights, value, exclusive=False)
        return self._turn.added(output, self.weights_value(weights, value, exclusive=False))

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> Callable[[], Array] | None:
        """Return a function that evaluates the rules: only on tiles that are mixed."""
        return partial(allowed_pairs, rules, region) if rules else None

    def exclude(self, scores: Array, allowed: Callable[[], Array], mixed: Bounds) -> Array:
        """Return the scores with -inf where they are not allowed."""
        return self._where_mixed(lambda: _where(allowed(), scores, -math.inf), scores)

    def silence(self, grad_scores: Array, allowed: Callable[[], Array], mixed: Bounds) -> Array:
        """Return the gradients of scores with 0 where they are not allowed, whatever they were."""
        return self._where_mixed(lambda: _where(allowed(), grad_scores, 0.0), grad_scores)

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


def _where(chosen: Array, array: Array, other: float) -> Array:
    """Return an array with a number in place of what is not chosen, by flags that broadcast to it."""
    flags = jax.lax.broadcast_in_dim(chosen, array.shape, range(array.ndim))
    return jax.lax.select(flags, array, jax.lax.full_like(array, other))


def _with_nan(array: Array) -> Array:
    """Return an array with NaN in place of infinities."""
    return _where(jax.lax.is_finite(array), array, math.nan)


def _unless_finite(found: Array, careful: Callable[[], Array]) -> Array:
    """Return a product, or what `careful` returns where a factor is not finite: that shows in each row of the product."""
    in_rows = jnp.sum(found, axis=-1)[..., :1]  # of all rows, because it takes longer to compile for a piece
    is_quick = jnp.all(jax.lax.is_finite(in_rows))  # an overflow is taken with care, too
    return jax.lax.cond(is_quick, lambda: found, careful)


class Turn:
    """One turn of a tile, in which values that are not finite count as 0 under a weight of 0.

    The first turn is the only one of a tile with finite values, and else adds nothing. The second one then adds the product
    with those that are finite. The others find by the same product where a positive weight reaches infinity, and where minus
    infinity; NaN counts as both.
    """

    def __init__(self, number: Array, value: Array) -> None:
        self.is_first, self._is_product, zeros = number == 0, number < 2, jax.lax.full_like(value, 0.0)
        self._sign = jnp.asarray([0, 0, 1, -1], value.dtype)[number]
        mark = jax.lax.select(self.is_first, math.nan, jnp.abs(self._sign))
        self.value = jax.lax.select(value * self._sign < math.inf, jax.lax.select(self._is_product, value, zeros), zeros + mark)
        self.is_last = self.is_first & _are_finite(self.value)

    def added(self, output: Array, product: Array) -> Array:
        """Return the output with what the product of weights and `value` adds."""
        zeros = jax.lax.full_like(product, 0.0)
        reached = jax.lax.select(product > 0.0, zeros + self._sign * math.inf, zeros)
        product = jax.lax.select(self._is_product, product, reached)
        return jax.lax.select(self.is_first & ~self.is_last, output, output + product)


@custom_vmap
def _are_finite(array: Array) -> Array:
    """Return whether all numbers are finite, and their sum; where arrays are mapped, of all of them, so that they take their turns together."""
    return jax.lax.is_finite(jnp.sum(array))


@_are_finite.def_vmap
def _(size: int, is_mapped: list[bool], array: Array) -> tuple[Array, bool]:  # noqa: ARG001
    return _are_finite(array), False
