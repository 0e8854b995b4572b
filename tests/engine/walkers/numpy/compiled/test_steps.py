"""What the compiled steps of a problem are given."""

import numpy as np
import pytest

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.compiled import bands, draws
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._random.survivors import survivors_one_by_one
from attention_xp._scores.region import Region
from tests.engine.walkers.numpy.compiled._memory import address, both_dtypes, looped

both_dtypes = pytest.mark.parametrize(*both_dtypes)


def problem_of(dtype, **options):
    query, key, value = (np.zeros((2, 3, n, 8), dtype) for n in (70, 90, 90))
    return Problem.of(query, key, value, None, options.pop("dropout_rate", 0.0), {**options, "impl": "tiled"})


@both_dtypes
def test_sizes_are_those_of_whole_vectors_and_chunks(dtype):
    steps, lanes = Steps(problem_of(dtype)), bands.WIDTH // np.dtype(dtype).itemsize
    assert steps.lanes == lanes
    assert [steps.width(n) for n in (0, 1, lanes, lanes + 1)] == [0, lanes, lanes, 2 * lanes]
    assert [steps.packed_shape(3, n, 5) for n in (64, 65)] == [(3, 1, 5, 64), (3, 2, 5, 64)]


def test_rows_are_made_wide_where_they_must_be():
    steps = Steps(problem_of(np.float32))
    rows, buffer = np.zeros((2, 9, 64), np.float32), np.zeros(2 * 9 * 64 + 7, np.float32)
    assert steps.whole(rows, buffer) is rows
    wide = steps.whole(rows[..., :37], buffer)
    assert wide.shape == (2, 9, steps.width(37))
    assert np.shares_memory(wide, buffer)


@looped
def drawn(kept, words, given, g, rows, left):
    return draws.draw(kept, words, given, g, rows, left)


def test_each_head_and_block_has_draws_of_its_own():
    problem = problem_of(np.float32, dropout_rate=0.5, rng=3, query_offset=np.asarray([1, 8]))
    region = Region(problem, (1, 1, 32, 0), (1, 2, 20, 90))
    given = Steps(problem).draws(region)
    assert given[1:3] == (40, 0)
    kept, words = np.empty((bands.BAND, draws.ROOM), np.uint8), np.empty((2, draws.ROOM // 2), np.uint32)
    found = []
    for g in range(2):
        start = drawn(kept, words, given, g, (0, 20), 0) - address(kept)
        found.append(kept[:20, start : start + 64].copy())
    keys = tuple(given[0][:, i].astype(np.int32)[:, None, None] for i in range(2))
    at = (np.arange(*bounds, dtype=np.int32) for bounds in ((40, 60), (0, 64)))
    rows, columns = np.meshgrid(*at, indexing="ij")
    np.testing.assert_array_equal(found, survivors_one_by_one(keys, 0.5, rows, columns, xp=np))
    assert (found[0] != found[1]).any()


def test_without_dropout_nothing_is_drawn():
    problem = problem_of(np.float32)
    assert Steps(problem).draws(Region(problem, (0, 0, 0, 0), (1, 2, 70, 90)))[3] == 0
