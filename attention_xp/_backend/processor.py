"""What the processor of this machine has units for."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["has_bfloat16_products"]


def has_bfloat16_products() -> bool:
    """Whether torch finds a unit for matrix products in bfloat16 (AMX); False where a version of torch does not tell."""
    ask: Callable[[], Mapping[str, Any]] = getattr(sys.modules["torch"].cpu, "get_capabilities", dict)
    return bool(ask().get("amx_bf16", False))
