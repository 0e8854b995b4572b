"""ONNX's attention operators as functions of arrays: inputs by position, attributes by keyword, all outputs.

They are those of ONNX 1.23, Attention-23 to 25, RotaryEmbedding-23 and LinearAttention-27. The package onnx is not needed.
"""

from attention_xp.interop.onnx._attention import attention
from attention_xp.interop.onnx._linear import linear_attention
from attention_xp.interop.onnx._rotary import rotary_embedding

__all__ = ["attention", "linear_attention", "rotary_embedding"]
