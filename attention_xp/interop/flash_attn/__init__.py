"""The functions of the package flash-attn, with its signatures, on arrays of any library and any device."""

from attention_xp.interop.flash_attn._dense import flash_attn_func, flash_attn_kvpacked_func, flash_attn_qkvpacked_func
from attention_xp.interop.flash_attn._kvcache import flash_attn_with_kvcache
from attention_xp.interop.flash_attn._varlen import flash_attn_varlen_func
from attention_xp.interop.flash_attn._varlen_packed import (
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
