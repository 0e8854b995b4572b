"""The draws of dropout in compiled loops against those of the package."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import draws
from attention_xp._engine.walkers.numpy.compiled.line import KEYS
from attention_xp._random.survivors import smallest_draw, survivors_one_by_one
from attention_xp._random.threefry import schedule_of
from tests.engine.walkers.numpy.compiled._memory import address, looped

RATE, HEAD_KEYS = 0.3, ((7, 11), (-5, 2**31 - 3))
BAND = 48


@looped
def drawn(kept, words, given, g, rows, left):
    return draws.draw(kept, words, given, g, rows, left)


def expected(head_key, rows, keys):
    key = tuple(np.full((1, 1), word, np.int32) for word in head_key)
    at = (positions.astype(np.int32) for positions in (rows[:, None], keys[None, :]))
    return survivors_one_by_one(key, RATE, *at, xp=np)


@pytest.mark.parametrize("first_row", [0, 1, -3])
@pytest.mark.parametrize("first_key", [0, 5])
@pytest.mark.parametrize(("row", "last_row"), [(0, 48), (1, 2), (3, 40), (48, 96), (51, 52)])
def test_a_band_has_the_survivors_of_its_positions(first_row, first_key, row, last_row):
    schedules = np.asarray([schedule_of(key) for key in HEAD_KEYS]).astype(np.uint32)
    words = np.empty((2, draws.ROOM // 2), np.uint32)
    for left in (0, KEYS, 7 * KEYS):
        for g, head_key in enumerate(HEAD_KEYS):
            kept = np.full((BAND, draws.ROOM), 9, np.uint8)
            given = schedules, first_row, first_key, np.uint32(smallest_draw(RATE))
            start = drawn(kept, words, given, g, (row, last_row), left) - address(kept)
            rows, keys = np.arange(first_row + row, first_row + last_row), first_key + left + np.arange(KEYS)
            found = kept[: last_row - row, start : start + KEYS]
            np.testing.assert_array_equal(found, expected(head_key, rows, keys))
            assert (kept[last_row - row :] == 9).all()
