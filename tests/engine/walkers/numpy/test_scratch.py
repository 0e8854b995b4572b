"""New memory that begins with a cache line."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.scratch import aligned


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3, 5), (2, 0, 4), (1, 1023)], ids=str)
def test_memory_is_new_and_begins_a_line(shape, dtype):
    made = [aligned(shape, np.dtype(dtype)) for _ in range(20)]  # NumPy's own would begin a line now and then
    for i, array in enumerate(made):
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0 or not array.size
        array[...] = i
    assert all((array == i).all() for i, array in enumerate(made))
