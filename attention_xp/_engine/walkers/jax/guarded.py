"""JAX's primitives of a tile, which guard against NaN by conditions inside the program; short, for it is compiled."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic, allowed_pairs
from attention_xp._engine.tile.products import query_key, weights_value
from attention_xp._scores.region import Region
from attention_xp._typing import Array, Namespace
from attention_xp.masks import Mask

__all__ = ["TURNS", "Guarded", "Turn"]

# Of a tile: its values as they are; where some are not finite, the others, and where infinity and -infinity are.
TURNS = 4


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

    def peak(self, so_far: Array, scores: Array) -> Array:
        """Return the largest score of each row, (..., m, 1)."""
        return jax.lax.max(so_far, _of_rows(scores, jax.lax.max, -math.inf))

    def row_sum(self, weights: Array) -> Array:
        """(..., m, n) -> (..., m, 1)."""
        return _of_rows(weights, jax.lax.add, 0.0)

    def weights_value(self, weights: Array, value: Array, *, exclusive: bool) -> Array:  # noqa: ARG002
        """(..., H, m, n) @ (..., Hkv, n, Dv) -> (..., H, m, Dv): values that are not finite wait for their turn."""
        return weights_value(self.problem, weights, value, exclusive=False, product=_outer_products)

    def plus_row_sum(self, total: Array | None, weights: Array) -> Array:
        """(..., m, 1) + (..., m, n) -> (..., m, 1): in the first turn alone."""
        sums = self.row_sum(weights)
        if self._turn is not None:
            sums = sums * self._turn.share
        return sums if total is None else self.add(total, sums)

    def plus_weights_value(self, output: Array | None, weights: Array, value: Array, *, exclusive: bool) -> Array:
        """Return ``output + weights @ value``, or what a turn adds."""
        if self._turn is None:
            return super().plus_weights_value(output, weights, value, exclusive=exclusive)
        return self._turn.added(output, self.weights_value(weights, value, exclusive=exclusive))

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> Callable[[], Array] | None:
        """Return a function that evaluates the rules: only on tiles that are mixed."""
        return partial(allowed_pairs, rules, region) if rules else None

    def exclude(self, scores: Array, allowed: Callable[[], Array], mixed: Bounds) -> Array:  # noqa: ARG002
        """Return the scores with -inf where they are not allowed."""
        return self._where_mixed(lambda: _where(allowed(), scores, -math.inf), scores)

    def silence(self, grad_scores: Array, allowed: Callable[[], Array], mixed: Bounds) -> Array:  # noqa: ARG002
        """Return the gradients of scores with 0 where they are not allowed, whatever they were."""
        return self._where_mixed(lambda: _where(allowed(), grad_scores, 0.0), grad_scores)

    def guarded(self, product: Callable[..., Array], rows: Array, tile: Array, *, exclusive: bool) -> Array:
        """Return a product, by its exclusive version where it is not finite."""
        found = product(rows, tile, exclusive=False)
        return _unless_finite(found, lambda: product(rows, tile, exclusive=True)) if exclusive else found

    def _where_mixed(self, careful: Callable[[], Array], quick: Array) -> Array:
        return careful() if self._mixed is True else jax.lax.cond(self._mixed, careful, lambda: quick)


# Written in `jax.lax`, for what `jnp` wraps in a program of its own takes several times as long to trace.


def _inner_products(query: Array, key: Array) -> Array:
    """(..., m, D) x (..., n, D) -> (..., m, n): as one contraction, for which XLA copies no transposed keys."""
    return _contracted(query, key, -1)


def _outer_products(weights: Array, value: Array, xp: Namespace) -> Array:  # noqa: ARG001
    """(..., m, n) x (..., n, Dv) -> (..., m, Dv)."""
    return _contracted(weights, value, -2)


def _contracted(rows: Array, others: Array, axis: int) -> Array:
    """Return the products of rows (..., m, K) with matrices whose `axis` is K."""
    lead = np.broadcast_shapes(rows.shape[:-2], others.shape[:-2])
    rows, others = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) if x.shape[:-2] != lead else x for x in (rows, others))
    axes, ndim = tuple(range(len(lead))), rows.ndim
    contracted = ((ndim - 1,), (ndim + axis,))
    return jax.lax.dot_general(rows, others, (contracted, (axes, axes)), preferred_element_type=rows.dtype)


def _reduced(array: Array, by: Callable[[Array, Array], Array], first: float, axes: Iterable[int]) -> Array:
    return jax.lax.reduce(array, np.asarray(first, array.dtype), by, tuple(axes))


def _of_rows(array: Array, by: Callable[[Array, Array], Array], first: float) -> Array:
    """(..., m, n) -> (..., m, 1)."""
    reduced = _reduced(array, by, first, (array.ndim - 1,))
    return jax.lax.broadcast_in_dim(reduced, (*reduced.shape, 1), range(reduced.ndim))


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
    """One of up to four turns of a tile, in which values that are not finite count as 0 under a weight of 0.

    The first turn multiplies all values. Where the product is finite, it is added, and the turn is the last one; otherwise
    nothing is added. The second turn adds the product with the finite values. The third and the fourth find, by the same
    product, where a positive weight meets infinity, and where it meets minus infinity; NaN counts as both. Turns differ in
    numbers and not in code, which would be compiled for each of them.
    """

    def __init__(self, number: Array, value: Array) -> None:
        self._number, self._dtype = number, value.dtype
        self.share = self._number_of(number, 1.0, 0.0, 0.0, 0.0)  # of the sums of rows
        sign, mark = self._number_of(number, 0.0, 0.0, 1.0, -1.0), self._number_of(number, math.nan, 0.0, 1.0, 1.0)
        bound = self._number_of(number, math.inf, math.inf, 0.0, 0.0)  # of what is not marked
        shown = jax.lax.clamp(-bound, value, bound)
        is_bare = value * sign < math.inf  # false for NaN
        self.value = jax.lax.select(is_bare, shown, jax.lax.broadcast(mark, value.shape))
        self.is_last: Array | None = None

    def added(self, output: Array, product: Array) -> Array:
        """Return the output with what the product of weights and `value` adds; from then on it is known whether the turn `is_last`."""
        # A mark shows in each row of the product; an overflow is taken with care.
        self.is_last = (self._number == 0) & _are_finite(product)
        turn = jax.lax.select(self.is_last, np.int32(TURNS), self._number)
        most = self._number_of(turn, -math.inf, math.inf, 0.0, 0.0, math.inf)  # of products that are added as they are
        beyond = self._number_of(turn, 0.0, math.nan, math.inf, -math.inf, math.nan)  # in place of others, and of NaN
        return output + jax.lax.select(product <= most, product, jax.lax.broadcast(beyond, product.shape))

    def _number_of(self, turn: Array, *numbers: float) -> Array:
        return jax.lax.select_n(turn, *(np.asarray(number, self._dtype) for number in numbers))


@custom_vmap  # type: ignore[untyped-decorator]
def _are_finite(array: Array) -> Array:
    """Return whether numbers and their sum are finite; of mapped arrays, all together, which so take their turns together."""
    return jax.lax.is_finite(_reduced(array, jax.lax.add, 0.0, range(array.ndim)))


@_are_finite.def_vmap  # type: ignore[untyped-decorator]
def _(size: int, is_mapped: list[bool], array: Array) -> tuple[Array, bool]:  # noqa: ARG001
    return _are_finite(array), False
