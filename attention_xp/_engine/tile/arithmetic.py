"""The primitives of the tile steps as functions of the array API standard, for every library."""

import math
from functools import reduce
from operator import and_

from attention_xp._backend.derivatives import can_differentiate, constant
from attention_xp._backend.libraries import device
from attention_xp._backend.shapes import summed_to
from attention_xp._backend.values import by_value
from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import base_of, lowest_score
from attention_xp._engine.tile.products import are_finite, key_rows, query_key, query_rows, value_rows, weights_value
from attention_xp._random.survivors import head_key, survivors, survivors_one_by_one
from attention_xp._scores.region import Region, cut
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.biases._bias import gradients_of
from attention_xp.masks import Mask

__all__ = ["Arithmetic", "Followed", "allowed_pairs"]


def allowed_pairs(rules: tuple[Mask, ...], region: Region) -> Array | None:
    """Return which pairs all rules allow, not broadcast further than need be; ``None`` is all pairs."""
    if len(rules) == 0:
        return None
    return reduce(and_, (rule.pairs(region) for rule in rules))


class Arithmetic:
    """Functional primitives; a walker with buffers of its own may overwrite the first argument of each."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.xp = problem, problem.xp
        self.base = base_of(problem.xp)

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y."""
        return x + y

    def multiply(self, x: Array, y: Array | float) -> Array:
        """Return x * y."""
        return x * y

    def divide(self, x: Array, y: Array) -> Array:
        """Return x / y."""
        return x / y

    def in_base(self, scores: Array) -> Array:
        """Return scores in the base, from natural ones; a mask may have added the smallest number, which must not overflow."""
        log_e = self.base.log_e
        if log_e == 1.0 or len(self.problem.addends) == 0:
            return scores if log_e == 1.0 else scores * log_e
        lowest = lowest_score(self.xp, scores.dtype)
        return self.xp.where(scores == -math.inf, scores, self.xp.clip(scores, lowest, None) * log_e)

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent."""
        return self.xp.tanh(x)

    def replace(self, old: Array, new: Array) -> Array:  # noqa: ARG002
        """Return `new`, where `old` was."""
        return new

    def shielded(self, products: Array, query: Array, key: Array, allowed: Array) -> Array:  # noqa: ARG002
        """Return the products for a function of them, whose derivative must not be NaN where pairs are excluded."""
        return products

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""
        return query_key(self.problem, query, key, exclusive=exclusive)

    def weights_value(self, weights: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n) @ (..., Hkv, n, Dv) -> (..., H, m, Dv)."""
        return weights_value(self.problem, weights, value, exclusive=exclusive)

    def plus_weights_value(self, output: Array | None, weights: Array, value: Array, *, exclusive: bool) -> Array:
        """Return ``output + weights @ value``, where ``None`` is nothing yet."""
        product = self.weights_value(weights, value, exclusive=exclusive)
        return product if output is None else self.add(output, product)

    def row_sum(self, weights: Array) -> Array:
        """(..., m, n) -> (..., m, 1)."""
        return self.xp.sum(weights, axis=-1, keepdims=True)

    def plus_row_sum(self, total: Array | None, weights: Array) -> Array:
        """(..., m, 1) + (..., m, n) -> (..., m, 1), where ``None`` is nothing yet."""
        sums = self.row_sum(weights)
        return sums if total is None else self.add(total, sums)

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> Array | None:
        """Return which pairs all rules allow."""
        return allowed_pairs(rules, region)

    def exclude(self, scores: Array, allowed: Array, mixed: Bounds) -> Array:  # noqa: ARG002
        """Return the scores with -inf where they are not allowed; `allowed` covers the `mixed` rows."""
        return self.xp.where(allowed, scores, -math.inf)

    def peak(self, so_far: Array, scores: Array) -> Array:
        """Return the largest score of each row, (..., m, 1)."""
        return self.xp.maximum(so_far, self.xp.max(scores, axis=-1, keepdims=True))

    def powers(self, scores: Array, shift: Array | None, allowed: Array | None, mixed: Bounds) -> Array:  # noqa: ARG002
        """Return the powers of ``scores - shift``, exactly 0 where not allowed."""
        return self.base.power(scores if shift is None else scores - shift)

    def survivors(self, region: Region) -> Array:
        """Return which weights survive dropout."""
        problem = self.problem
        key = head_key(problem.seed, b=region.b, h=region.h)  # type: ignore[arg-type]
        offsets = [0 if n is None else n for n in (problem.query_offset, problem.key_offset)]
        # Draws come in squares of 2 x 2 pairs, so that it must be known whether the first row and key are even or odd, or
        # the walker must be able to cut the draws at a place that only the program knows.
        is_known = all(isinstance(offset, int) for offset in offsets)
        is_cut = is_known or (problem.has_one_offset and region.cut is not cut)
        if not problem.keys_count_up or not is_cut:
            return survivors_one_by_one(key, problem.dropout_rate, region.q_idx, region.kv_idx, xp=self.xp)
        first = region.starts[-2] + offsets[0], region.starts[-1] + offsets[1]
        like = device(problem.query)
        keep = survivors(key, problem.dropout_rate, first, region.sizes[-2:], xp=self.xp, device=like)
        ends = [0] * (keep.ndim - 2)
        return region.cut(keep, [*ends, first[0] & 1, first[1] & 1], [*keep.shape[:-2], *region.sizes[-2:]])

    def thin(self, x: Array, keep: Array) -> Array:
        """Return x with 0 for what does not survive."""
        return self.xp.where(keep, x, 0.0)

    def silence(self, grad_scores: Array, allowed: Array, mixed: Bounds) -> Array:  # noqa: ARG002
        """Return the gradients of scores with 0 where they are not allowed, whatever they were."""
        return self.xp.where(allowed, grad_scores, 0.0)

    def gradient_value(self, gradient: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., H, m, Dv) @ (..., Hkv, n, Dv)^T -> (..., H, m, n)."""
        return query_key(self.problem, gradient, value, exclusive=exclusive)

    def query_gradients(self, grad_scores: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n) @ (..., Hkv, n, D) -> (..., H, m, D)."""
        return query_rows(self.problem, grad_scores, key, exclusive=exclusive)

    def key_gradients(self, grad_scores: Array, query: Array) -> Array:
        """(..., H, m, n)^T @ (..., H, m, D) -> (..., Hkv, n, D)."""
        return key_rows(self.problem, grad_scores, query)

    def value_gradients(self, weights: Array, gradient: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n)^T @ (..., H, m, Dv) -> (..., Hkv, n, Dv)."""
        return value_rows(self.problem, weights, gradient, exclusive=exclusive)

    def bias_gradients(self, bias: Bias, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Return what the gradients of the scores of a region add to the gradients of the arrays of a bias."""
        return gradients_of(bias, region, grad_scores)

    def summed(self, grad_scores: Array, shape: tuple[int, ...]) -> Array:
        """Return gradients summed to a shape that broadcasts to theirs."""
        return summed_to(self.xp, grad_scores, shape)


class Followed(Arithmetic):
    """Primitives that the library may differentiate by itself: derivatives are not NaN where pairs are excluded."""

    @classmethod
    def of(cls, problem: Problem) -> Arithmetic:
        """Return these primitives, or the plain ones for a library without derivatives."""
        return cls(problem) if can_differentiate(problem.xp) else Arithmetic(problem)

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""
        return query_key(self.problem, query, key, exclusive=exclusive, is_followed=True)

    def peak(self, so_far: Array, scores: Array) -> Array:
        """Return the largest score of each row as a constant: the results do not depend on it."""
        return constant(self.xp, super().peak(so_far, scores))

    def shielded(self, products: Array, query: Array, key: Array, allowed: Array) -> Array:
        """Return the products with 0 for excluded pairs, unless all of query and key is finite."""
        xp = self.xp
        return by_value(
            xp, lambda: are_finite(query, key), lambda x, _: x, lambda x, a: xp.where(a, x, 0.0), products, allowed
        )
