"""JAX's walker: loops inside the compiled program, and rules for its derivatives."""

from attention_xp._engine.walkers.jax.derivatives import backward, forward
from attention_xp._engine.walkers.jax.statistics import statistics

__all__ = ["backward", "forward", "statistics"]
