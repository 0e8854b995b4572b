"""Pictures of attention: weights, masks, positions and statistics, with matplotlib and in the browser.

``pip install "attention-xp[viz]"`` brings matplotlib, which is imported when something is plotted, and anywidget, by which
`head_view` is a widget in notebooks. Functions take arrays of any library, on any device.

Examples
--------
>>> import numpy as np
>>> from attention_xp import self_attention
>>> from attention_xp.viz import attention_rollout
>>> _, weights = self_attention(np.eye(4), 4, is_causal=True)
>>> attention_rollout([weights, weights]).shape
(4, 4)
"""

from attention_xp.viz._attention import plot_attention
from attention_xp.viz._head_view import HeadView, head_view
from attention_xp.viz._mask import plot_mask
from attention_xp.viz._positions import plot_positions
from attention_xp.viz._rollout import attention_rollout
from attention_xp.viz._statistics import plot_statistics

__all__ = [
    "HeadView",
    "attention_rollout",
    "head_view",
    "plot_attention",
    "plot_mask",
    "plot_positions",
    "plot_statistics",
]
