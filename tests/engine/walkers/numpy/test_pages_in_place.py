"""Which pages compiled loops read; what they give is tested in `tests/cache`."""

import numpy as np
import pytest

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.walkers.numpy import pages_in_place
from attention_xp._engine.walkers.numpy.compiled import found
from tests._inputs import normal


@pytest.mark.parametrize(
    ("longest", "heads", "rows", "is_taken"), [(11, 2, 1, True), (10, 2, 1, False), (10, 4, 1, True), (10, 2, 2, True)]
)
def test_long_stretches_of_a_single_row_are_left_to_blas(longest, heads, rows, is_taken, monkeypatch):
    """It is as fast where nothing shares keys, neither rows nor the heads of a group."""
    monkeypatch.setattr(found, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(pages_in_place, "_LONG", longest)
    pool = normal(2, 10, 6, 32).astype(np.float32).swapaxes(0, 1)
    own, length = [2, 3, 4, 5, 9, 7], 32  # stretches of 24, 6 and 2 keys
    key = normal(1, 2, length, 32).astype(np.float32)
    problem = Problem.of(normal(1, heads, rows, 32).astype(np.float32), key, key, None, 0.0, {})
    result = pages_in_place.attend_compiled(problem, pool, pool, [own], [length], Wanted())
    assert (result is not None) == (is_taken and found.loops() is not None)
