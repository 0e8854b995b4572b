"""What the processor of this machine has units for; what Linux says of it, and elsewhere a guess."""

import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["has_bfloat16_products", "is_intel", "second_cache"]

_USUAL = 2**20  # bytes, where nobody says
_UNITS = {"K": 2**10, "M": 2**20}


def has_bfloat16_products() -> bool:
    """Whether torch finds a unit for matrix products in bfloat16 (AMX); False where a version of torch does not tell."""
    ask: Callable[[], Mapping[str, Any]] = getattr(sys.modules["torch"].cpu, "get_capabilities", dict)
    return bool(ask().get("amx_bf16", False))


@cache
def is_intel() -> bool:
    """Whether the processor is one of Intel's; elsewhere than on Linux none is known to be."""
    about = Path("/proc/cpuinfo")
    return about.exists() and "GenuineIntel" in about.read_text(errors="replace")


@cache
def second_cache() -> int:
    """Return the bytes of the second-level cache of a core."""
    try:
        for level in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
            if (level / "level").read_text().strip() == "2":
                return _bytes((level / "size").read_text().strip())
    except (OSError, ValueError):
        pass
    return _USUAL


def _bytes(size: str) -> int:
    """Return a size such as ``2048K`` as a number of bytes."""
    return int(size[:-1]) * _UNITS[size[-1]] if size[-1:] in _UNITS else int(size)
