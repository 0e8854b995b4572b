"""The heads of a job on NumPy: their arrays, and bounds on their scores."""

import math
from typing import Any, NamedTuple

import numpy as np

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import base_of
from attention_xp._engine.tile.scores import largest_score
from attention_xp._engine.tile.sink import sink_of
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias

__all__ = ["Ceiling", "Heads", "Magnitudes", "ceiling", "is_finite", "likely", "longest", "longest_of_sample"]

# Scores up to here, to base 2, need no shift: their powers, times values, are summed without overflow.
_SMALL = 40.0
# Values up to here add nothing to a sum under the least weight that a clipped score has.
_LIGHT = 2.0**60
_SAMPLE, _FEWEST = 128, 2  # vectors in a sample: of all heads, and of each at least


class Ceiling(NamedTuple):
    """A bound on the scores, in the base of the powers, as a function of a bound on the products."""

    extra: float  # the most that is added
    sink: float
    cap: float  # of the products
    infinite: bool  # whether minus infinity may be added

    def __call__(self, product: float) -> float:
        """Return a bound on the scores, from one on the products, which may be NaN or infinity."""
        capped = min(product, self.cap) if math.isfinite(product) else product
        return max(capped + self.extra, self.sink)


class Magnitudes(NamedTuple):
    """What the sizes of keys, values and scores allow."""

    bounded: bool  # scores are small: their powers need no shift, and pairs can be excluded after the powers
    clip: bool  # scores may be so far from 0 that powers are slow, and are clipped
    tame: bool  # scores are far from the largest number, so that subtracting a large one excludes a pair
    keys: bool  # whether keys are finite
    values: bool  # whether values are finite
    sure: bool = True  # whether this is known from all numbers, and not from a sample

    @classmethod
    def of(
        cls, problem: Problem, *, limit: float, keys: bool, value: float, infinite: bool, sure: bool
    ) -> "Magnitudes":
        """Return what scores up to a limit, and values up to a magnitude, allow."""
        largest = float(np.finfo(problem.dtype).max)
        bounded = limit < _SMALL * base_of(problem.xp).log_2 and value * problem.key.shape[-2] < largest / 2.0**_SMALL
        clip = math.isfinite(limit) and (not bounded or infinite) and value < _LIGHT
        return cls(bounded, clip, limit < 0.04 * largest, keys, math.isfinite(value), sure)


class Heads(NamedTuple):
    """The query heads of a job.

    They are stacked, some with each of K key/value heads; or, where few rows share a key/value head, folded into the
    rows of a single product.
    """

    place: Place
    query: Array  # (..., G, Sq, D)
    key: Array  # (K, Sk, D)
    value: Array  # (K, Sk, Dv)
    magnitudes: Magnitudes

    @classmethod
    def of(cls, problem: Problem, likely: Magnitudes, place: Place) -> "Heads":
        """Return some heads with what a sample says of their scores."""
        key, value = (place.by_head(problem, a) for a in (problem.key, problem.value))  # (K, Sk, D)
        return cls(place, problem.query[place.at], key, value, likely)

    def surely(self, problem: Problem, ceiling: Ceiling) -> "Heads":
        """Return the same heads with bounds from all keys, queries and values."""
        norm, values = longest(problem, self.key), self.value.astype(problem.dtype, copy=False)
        limit = ceiling(_product(problem, longest(problem, self.query), norm))
        value = math.sqrt(np.vdot(values, values))  # the norm of all values together bounds each of them
        keys = math.isfinite(norm)
        return self._replace(
            magnitudes=Magnitudes.of(problem, limit=limit, keys=keys, value=value, infinite=ceiling.infinite, sure=True)
        )


def likely(problem: Problem, ceiling: Ceiling) -> Magnitudes:
    """Return what a sample says of all heads; where scores are small, the sums of each block are checked afterwards."""
    limit = ceiling(_product(problem, *longest_of_sample(problem)))
    return Magnitudes.of(problem, limit=limit, keys=True, value=1.0, infinite=ceiling.infinite, sure=False)


def longest_of_sample(problem: Problem) -> tuple[float, float]:
    """Return the largest lengths of a query and of a key among some of them."""
    query, key = (longest(problem, _sample(a)) for a in (problem.query, problem.key))
    return query, key


def _sample(vectors: Array) -> Array:
    some = max(_SAMPLE // math.prod(vectors.shape[:-2]), _FEWEST)
    return vectors[..., :: vectors.shape[-2] // some + 1, :]


def _product(problem: Problem, query: float, key: float) -> float:
    """Return a bound on the scaled products in the base, of vectors no longer than these lengths."""
    scale: float = problem.scale  # an array has become a part of the query
    return abs(scale) * base_of(problem.xp).log_e * key * query


def longest(problem: Problem, vectors: Array) -> float:
    """Return the largest length of a vector (..., D)."""
    vectors = vectors.astype(problem.dtype, copy=False)
    return math.sqrt(np.vecdot(vectors, vectors).max())


def ceiling(problem: Problem) -> Ceiling:
    """Return the bound on the scores that follows from addends, sinks and soft cap."""
    infinite = any(map(_excludes, problem.addends))
    if problem.score_mod is not None:
        return Ceiling(math.inf, 0.0, math.inf, infinite)
    log_e, logits = base_of(problem.xp).log_e, sink_of(problem, Region.whole(problem))
    extra = sum(log_e * _bound(problem, addend) for addend in problem.addends)
    sink = 0.0 if logits is None else log_e * _largest(logits)
    return Ceiling(extra, sink, log_e * largest_score(problem), infinite)


def _excludes(addend: Array | Bias) -> bool:
    """Whether an array that is added contains minus infinity; a rule that may give it has no bound anyway."""
    return not isinstance(addend, Bias) and bool(np.fmin.reduce(addend, axis=None) == -math.inf)


def _bound(problem: Problem, addend: Array | Bias) -> float:
    return addend.bound(Region.whole(problem)) if isinstance(addend, Bias) else _largest(addend)


def _largest(array: Any) -> float:
    """Return the largest magnitude, apart from -inf, which excludes."""
    lowest = array.min()
    if lowest == -math.inf:
        array = np.where(array == -math.inf, 0.0, array)
        lowest = array.min()
    return float(max(array.max(), -lowest))


def is_finite(array: Array) -> bool:
    """Whether numbers are finite: all are looked at only where the sum of their squares, which BLAS finds faster, is not."""
    flat = array.reshape(-1)
    return math.isfinite(float(np.vdot(flat, flat))) or bool(np.isfinite(flat).all())
