"""Names for annotations; at run time they cost nothing and demand nothing."""

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Array", "DType", "Device", "Namespace", "ScoreMod", "ScoreModAndDerivative"]

# No common base class exists across array libraries: these names are for the reader.
Array: TypeAlias = Any
DType: TypeAlias = Any
Device: TypeAlias = Any
Namespace: TypeAlias = Any

ScoreMod: TypeAlias = Callable[[Array, Array, Array, Array, Array], Array]
"""``f(score, b, h, q_idx, kv_idx) -> score``, on whole tiles."""

ScoreModAndDerivative: TypeAlias = tuple[ScoreMod, ScoreMod]
"""A function of the scores and its derivative by the score, of the same signature."""
