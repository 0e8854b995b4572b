"""Loops compiled by numba in calls of every size, which are else left to NumPy where they are small."""

import pytest

from attention_xp._engine.walkers.numpy.compiled import found


def force() -> None:
    """Let numba compile the loops of every call; refuse to run where it cannot."""
    found.FEWEST_PAIRS = found.FEWEST_PACKED_ROWS = 0
    found.has_vector_powers = lambda dtype: False
    if found.loops() is None:
        raise pytest.UsageError("--compiled: numba cannot compile here")
