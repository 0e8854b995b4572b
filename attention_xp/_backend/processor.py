"""What the processor of this machine has units for."""

import sys

__all__ = ["has_bfloat16_products"]


def has_bfloat16_products() -> bool:
    """Whether torch finds a unit for matrix products in bfloat16 (AMX); False where a version of torch does not tell."""
    capabilities = getattr(sys.modules["torch"].cpu, "get_capabilities", dict)
    return bool(capabilities().get("amx_bf16", False))
