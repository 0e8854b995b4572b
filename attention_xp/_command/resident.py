"""The resident memory of this process, which Linux tells in pages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["rise"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def rise(call: Callable[[], Any]) -> int:
    """Return by how many bytes the memory rises during a call, its result included; OSError where that cannot be told."""
    _RESET.write_text("5", "ascii")  # the high-water mark starts again from what is resident now
    before = _status("VmRSS")
    _kept = call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text("ascii").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
