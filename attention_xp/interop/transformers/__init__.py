"""Attention for the models of Hugging Face's transformers, 5.x: ``attn_implementation="attention_xp"``."""

from attention_xp.interop.transformers._attention import attention_forward, attention_mask, register
from attention_xp.interop.transformers._mask_functions import rule_of

__all__ = ["attention_forward", "attention_mask", "register", "rule_of"]
