"""Masks as rules that are never materialised: which query may attend which key.

A rule is evaluated tile by tile, from positions, and says beforehand which tiles are empty or full, so that the
cost of attention follows the allowed area. Rules combine with ``&``, ``|`` and ``~``, with each
other and with boolean arrays. They are pytrees of JAX, whose leaves are their arrays.

Arrays that a rule holds are NumPy arrays, which serve attention on every library, or arrays of the
library of the query. They are not copied: do not change them afterwards.

Examples
--------
>>> from attention_xp.masks import CausalMask, PrefixMask, WindowMask
>>> prefix_lm = CausalMask() | PrefixMask(2)
>>> prefix_lm.to_array(4, 4)
array([[ True,  True, False, False],
       [ True,  True, False, False],
       [ True,  True,  True, False],
       [ True,  True,  True,  True]])
>>> (CausalMask() & WindowMask(127, 0)).density(4096, 4096)
0.030765533447265625
"""

from attention_xp._scores.region import Region, Span
from attention_xp.masks._flag_rules import BlockMask, GlobalMask
from attention_xp.masks._function_rule import FunctionMask
from attention_xp.masks._length_rules import LengthMask, PrefixMask
from attention_xp.masks._mask import ArrayMask, Mask
from attention_xp.masks._position_rules import CausalMask, StridedMask, WindowMask
from attention_xp.masks._presets import bigbird_mask, longformer_mask, sparse_transformer_mask
from attention_xp.masks._segment_rule import SegmentMask

__all__ = [
    "ArrayMask",
    "BlockMask",
    "CausalMask",
    "FunctionMask",
    "GlobalMask",
    "LengthMask",
    "Mask",
    "PrefixMask",
    "Region",
    "SegmentMask",
    "Span",
    "StridedMask",
    "WindowMask",
    "bigbird_mask",
    "longformer_mask",
    "sparse_transformer_mask",
]
