"""Positions as terms of the scores.

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

from attention_xp.biases._relative import relative_position_scores, relative_shift

__all__ = ["relative_position_scores", "relative_shift"]
