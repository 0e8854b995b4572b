"""Numbers of 16 bits made wide and narrow, bit by bit."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled.narrow import LOOPS

EVERY = np.arange(2**16, dtype=np.uint16)
RANDOM = np.random.default_rng(0).integers(0, 2**32, 2**16, dtype=np.uint32)
TIES = (EVERY.astype(np.uint32) << 16) | 0x8000  # halfway between two bfloat16


def converted(kinds, bits, dtype):
    target = np.empty(len(bits), dtype)
    LOOPS[kinds](bits, target)
    return target


def test_every_bfloat16():
    wide = converted(("bfloat16", "float32"), EVERY, np.uint32)
    np.testing.assert_array_equal(wide, EVERY.astype(np.uint32) << 16)
    back = converted(("float32", "bfloat16"), wide, np.uint16)
    is_nan = np.isnan(wide.view(np.float32))
    np.testing.assert_array_equal(back[~is_nan], EVERY[~is_nan])
    assert np.isnan((back[is_nan].astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("bits", [RANDOM, TIES, TIES - 1, TIES + 1], ids=["random", "ties", "below", "above"])
def test_the_nearest_bfloat16_or_the_even_one_of_two(bits):
    numbers = bits.view(np.float32)
    found = (converted(("float32", "bfloat16"), bits, np.uint16).astype(np.uint32) << 16).view(np.float32)
    is_nan = np.isnan(numbers)
    assert np.isnan(found[is_nan]).all()
    # Those between which a number lies, in magnitude; beyond the largest, infinity follows.
    lower = bits & 0xFFFF0000
    upper = lower + 0x10000
    rest = bits & 0xFFFF
    is_up = (rest > 0x8000) | ((rest == 0x8000) & ((lower >> 16) & 1 == 1))
    expected = np.where(is_up, upper, lower).view(np.float32)
    np.testing.assert_array_equal(found[~is_nan], expected[~is_nan])


@pytest.mark.skipif(("float16", "float32") not in LOOPS, reason="the processor converts no float16")
def test_float16_as_numpy_has_it():
    wide = converted(("float16", "float32"), EVERY, np.uint32).view(np.float32)
    np.testing.assert_array_equal(wide, EVERY.view(np.float16).astype(np.float32))
    with np.errstate(all="ignore"):
        for numbers in (
            RANDOM.view(np.float32),
            wide * np.float32(1.0003),
            np.float32(2.0**-24) * np.arange(-600, 600, 0.25, np.float32),
        ):
            found = converted(("float32", "float16"), numbers.view(np.uint32), np.uint16).view(np.float16)
            np.testing.assert_array_equal(found, numbers.astype(np.float16))
