"""Arrays with other memory around them, and what compiled loops ask of them."""

import numpy as np
from numba import njit

from attention_xp._engine.walkers.numpy.compiled.powers import CONTRACTED

both_dtypes = ("dtype", [np.float32, np.float64])


def address(array):
    """Where an array begins."""
    return array.__array_interface__["data"][0]


def amid(array, around):
    """Return a copy that lies amid a number, and the memory of both: whoever reads too far meets the number."""
    memory = np.full(array.size + 64, around, array.dtype)
    memory[32:-32] = array.ravel()
    return memory[32:-32].reshape(array.shape), memory


def looped(function):
    """Compile a function, and keep it nowhere: a cache knows nothing of changes in what it calls."""
    return njit(error_model="numpy", fastmath=CONTRACTED)(function)
