"""How fine the pattern of a mask is: tiles have to be as small to leave out what it excludes.

torch compiles these functions, too, and its compiler does not support `min` with a default.
"""

import sys

from attention_xp.masks import Mask

__all__ = ["FEWEST_ROWS", "blocks", "grain", "narrowest"]

FEWEST_ROWS = 64
_WINDOW_ROWS = 256  # of a tile under a window

Rules = tuple[Mask, ...]


def grain(rules: Rules) -> int:
    """Return the largest number of rows for which tiles leave out much of what rules exclude."""
    of_blocks = (max(rows, FEWEST_ROWS) for rows, _ in blocks(rules))
    return min([sys.maxsize, *of_blocks, *(max(left, _WINDOW_ROWS) for left, _ in _windows(rules))])


def narrowest(rules: Rules) -> int:
    """Return the number of keys of the narrowest window among the rules."""
    return min([sys.maxsize, *(left + (right or 0) + 1 for left, right in _windows(rules))])


def blocks(rules: Rules) -> list[tuple[int, int]]:
    """Return the block sizes, (rows, keys), of the rules that consist of blocks."""
    return [block for rule in rules for block in rule._blocks]


def _windows(rules: Rules) -> list[tuple[int, int | None]]:
    return [window for rule in rules for window in rule._windows]
