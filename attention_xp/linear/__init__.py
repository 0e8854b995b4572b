"""Linear attention: time and memory linear in the length, for plain, gated and delta rules.

Examples
--------
>>> import numpy as np
>>> from attention_xp.linear import linear_attention
>>> x = np.random.default_rng(0).standard_normal((2, 4, 1000, 16))
>>> linear_attention(x, x, x, is_causal=True).shape
(2, 4, 1000, 16)
"""

from attention_xp.linear._attention import linear_attention
from attention_xp.linear._gradients import LinearGradients, linear_attention_vjp
from attention_xp.linear._performer import PerformerFeatures, performer_features
from attention_xp.linear._problem import LinearState

__all__ = [
    "LinearGradients",
    "LinearState",
    "PerformerFeatures",
    "linear_attention",
    "linear_attention_vjp",
    "performer_features",
]
