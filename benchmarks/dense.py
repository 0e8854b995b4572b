"""The overhead of a call on tiny NumPy arrays, and the dense kernel on large ones, against the five-line formula."""

from collections.abc import Iterator

import numpy as np

from attention_xp import flash_attention, scaled_dot_product_attention
from benchmarks.duel import Duel, duel
from benchmarks.formula import usual_attention

__all__ = ["run"]

CASES = {(2, 4, 16, 32): 500, (1, 8, 2048, 64): 1}  # shape: calls per turn
PAIRS = 15


def run() -> Iterator[tuple[str, str, Duel]]:
    """Yield (shape, contender, outcome), against the formula on NumPy in float32."""
    rng = np.random.default_rng(0)
    for shape, calls in CASES.items():
        q, k, v = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
        contenders = {
            "scaled_dot_product_attention": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v, impl="dense"),
            "flash_attention": lambda q=q, k=k, v=v: flash_attention(q, k, v, impl="dense"),
        }
        for name, ours in contenders.items():
            theirs = lambda q=q, k=k, v=v: usual_attention(np, q, k, v)
            yield str(shape), name, duel(ours, theirs, pairs=PAIRS, calls=calls)
