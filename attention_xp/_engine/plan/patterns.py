"""How fine the pattern of a mask is: what tiles have to be as small as, to leave out what it excludes.

Where torch compiles it follows these questions, and knows no `min` with a default.
"""

import sys

from attention_xp.masks import Mask

__all__ = ["FEWEST_ROWS", "blocks", "grain", "narrowest"]

FEWEST_ROWS = 64
_WINDOW_ROWS = 256  # of a tile under a window

Rules = tuple[Mask, ...]


def grain(rules: Rules) -> int:
    """Return up to how many rows of a tile rules leave out much of it."""
    of_blocks = (max(rows, FEWEST_ROWS) for rows, _ in blocks(rules))
    return min([sys.maxsize, *of_blocks, *(max(left, _WINDOW_ROWS) for left, _ in _windows(rules))])


def narrowest(rules: Rules) -> int:
    """Return how many keys the narrowest window has that rules are made of."""
    return min([sys.maxsize, *(left + (right or 0) + 1 for left, right in _windows(rules))])


def blocks(rules: Rules) -> list[tuple[int, int]]:
    """Return the sizes of the blocks that rules are made of."""
    return [block for rule in rules for block in rule._blocks]


def _windows(rules: Rules) -> list[tuple[int, int | None]]:
    return [window for rule in rules for window in rule._windows]
