"""NumPy's walker: threads that compute in place, each in buffers of its own."""

from attention_xp._engine.walkers.numpy.backward import backward
from attention_xp._engine.walkers.numpy.forward import forward
from attention_xp._engine.walkers.numpy.statistics import statistics

__all__ = ["backward", "forward", "statistics"]
