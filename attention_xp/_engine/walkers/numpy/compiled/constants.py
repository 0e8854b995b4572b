"""The numbers that compiled powers need."""

import math
from typing import Any, NamedTuple

import numpy as np

from attention_xp._typing import DType

__all__ = ["LEAST", "LEAST_FORWARD", "Constants"]

_TAIL = 2.3190468138462996e-17  # the logarithm of 2, minus its value in float64

# A weight of less than the 84th power of a half, relative to a log-sum-exp of at least -20 (see `Common`), adds nothing to a
# gradient in float32. Times a small gradient it might be subnormal, and products with such numbers take up to 30 times as
# long: under linear biases, most weights are that small.
LEAST = 84

# A weight of less than the 116th power of a half, relative to one of the same row, adds nothing to an output in float32, unless
# its value is 2^92 times as large; and times a value it may be subnormal: where scores are large, most weights are that small.
LEAST_FORWARD = 116


class Constants(NamedTuple):
    """What powers of a base need, all of the dtype of the scores."""

    log2: Any  # the logarithm of the base to base 2
    upper: Any  # the logarithm of 2 in the base: its first digits, whose products with integers are exact,
    lower: Any  # and the others
    least: Any  # scores below have the power 0
    most: Any  # scores from here on have the power infinity

    @classmethod
    def of(cls, dtype: DType, least: float = math.inf, *, is_natural: bool) -> "Constants":
        """Return them for base e or for base 2; scores below ``-least`` have the power 0, at the latest."""
        limits = np.finfo(dtype)
        log_2, tail = (math.log(2.0), _TAIL) if is_natural else (1.0, 0.0)
        upper = round(log_2 * 2**12) / 2**12
        numbers = 1.0 / log_2, upper, log_2 - upper + tail, max(log_2 * limits.minexp, -least), log_2 * limits.maxexp
        return cls(*map(np.dtype(dtype).type, numbers))
