"""The walker of every library without one of its own: Python loops over the array API standard, all heads in one tile."""

from attention_xp._engine.walkers.portable.backward import backward
from attention_xp._engine.walkers.portable.forward import forward
from attention_xp._engine.walkers.portable.statistics import statistics

__all__ = ["backward", "forward", "statistics"]
