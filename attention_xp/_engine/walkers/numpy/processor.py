"""What Linux says of the processor, and elsewhere a guess: who makes it, and how large its caches are."""

from functools import cache
from pathlib import Path

__all__ = ["is_intel", "second_cache"]

_USUAL = 2**20  # bytes, where nobody says
_UNITS = {"K": 2**10, "M": 2**20}


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
