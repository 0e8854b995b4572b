"""torch's attention functions, with torch's signatures, computed here; and all of a program's, by `route`."""

from attention_xp.interop.torch._block_masks import rule_from_block_mask
from attention_xp.interop.torch._flex import flex_attention
from attention_xp.interop.torch._modules import multi_head_params
from attention_xp.interop.torch._route import route
from attention_xp.interop.torch._sdpa import scaled_dot_product_attention
from attention_xp.interop.torch._varlen import varlen_attn

__all__ = [
    "flex_attention",
    "multi_head_params",
    "route",
    "rule_from_block_mask",
    "scaled_dot_product_attention",
    "varlen_attn",
]
