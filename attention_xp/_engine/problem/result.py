"""What a kernel is asked for beside the output, and what it gives."""

from typing import NamedTuple

from attention_xp._typing import Array

__all__ = ["Attended", "Wanted"]


class Wanted(NamedTuple):
    """The results a caller needs beside the output."""

    weights: bool = False
    lse: bool = False


class Attended(NamedTuple):
    """The results of a kernel; ``None`` for what was not wanted."""

    output: Array
    weights: Array | None
    lse: Array | None
