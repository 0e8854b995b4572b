"""Attention weights to draw."""

import numpy as np

from attention_xp import softmax
from tests._inputs import normal


def weights_of(*shape, seed=0):
    """Causal weights, each row summing up to 1."""
    scores = 2.0 * normal(*shape, seed=seed)
    allowed = np.tril(np.ones(shape[-2:], bool), shape[-1] - shape[-2])
    return np.asarray(softmax(np.where(allowed, scores, -np.inf)))


def tokens_of(count):
    """Tokens of several lengths."""
    return [f"{'token' * (i % 3)}{i}" for i in range(count)]
