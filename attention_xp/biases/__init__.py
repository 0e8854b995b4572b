"""Positions as terms of the scores: rules that are evaluated tile by tile, and scores of distances.

Arrays that a rule holds are NumPy arrays, which serve attention on every library, or arrays of the library of
the query. They are not copied: do not change them afterwards.

Examples
--------
>>> import numpy as np
>>> from attention_xp import flash_attention
>>> from attention_xp.biases import relative_position_scores
>>> query, key, value = np.ones((3, 2, 8, 16, 4))
>>> bias = relative_position_scores(query, np.ones((2 * 3 + 1, 4)), key_len=16) / 4**0.5
>>> flash_attention(query, key, value, bias=bias).shape
(2, 8, 16, 4)
"""

from attention_xp._scores.region import Region
from attention_xp.biases._alibi import AlibiBias
from attention_xp.biases._bias import Bias
from attention_xp.biases._buckets import RelativePositionBias
from attention_xp.biases._relative import relative_position_scores, relative_shift

__all__ = ["AlibiBias", "Bias", "Region", "RelativePositionBias", "relative_position_scores", "relative_shift"]
