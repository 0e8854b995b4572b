"""Inputs of attention as NumPy arrays, the same in every run."""

from typing import NamedTuple

import numpy as np


class Inputs(NamedTuple):
    """Query ``(..., H, Sq, D)``, key ``(..., Hkv, Sk, D)`` and value ``(..., Hkv, Sk, Dv)``."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return standard normal numbers that depend on shape and seed alone."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def inputs(query: tuple[int, ...], key: tuple[int, ...] | None = None, value: tuple[int, ...] | None = None) -> Inputs:
    """Return query, key and value of the given shapes; a shape left out is that of the one before."""
    key = key or query
    return Inputs(normal(*query), normal(*key, seed=1), normal(*(value or key), seed=2))
