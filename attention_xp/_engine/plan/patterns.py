"""How fine the pattern of a mask is: what tiles have to be as small as, to leave out what it excludes.

Where torch compiles it follows these questions, and knows no `min` with a default.
"""

import sys

from attention_xp.masks import BlockMask, Mask, WindowMask
from attention_xp.masks._mask import Not
from attention_xp.masks._pairs import parts_of

__all__ = ["FEWEST_ROWS", "blocks", "grain", "narrowest"]

FEWEST_ROWS = 64
_WINDOW_ROWS = 256  # of a tile under a window

Rules = tuple[Mask, ...]


def grain(rules: Rules) -> int:
    """Return up to how many rows of a tile rules leave out much of it."""
    return min([sys.maxsize, *map(_grain, rules)])


def narrowest(rules: Rules) -> int:
    """Return how many keys the narrowest window has that rules are made of."""
    return min([sys.maxsize, *map(_width, rules)])


def blocks(rules: Rules) -> list[tuple[int, int]]:
    """Return the sizes of the blocks that rules are made of."""
    own = [rule.block_size for rule in rules if isinstance(rule, BlockMask)]
    return own + [block for rule in rules for block in blocks(_parts(rule))]


def _grain(rule: Mask) -> int:
    if isinstance(rule, BlockMask):
        return max(rule.block_size[0], FEWEST_ROWS)
    if isinstance(rule, WindowMask) and rule.left is not None:
        return max(rule.left, _WINDOW_ROWS)
    return grain(_parts(rule))


def _width(rule: Mask) -> int:
    if isinstance(rule, WindowMask) and rule.left is not None:
        return rule.left + (rule.right or 0) + 1
    return narrowest(_parts(rule))


def _parts(rule: Mask) -> Rules:
    """Return what a rule is made of, unless it is the opposite of that."""
    return () if isinstance(rule, Not) else tuple(parts_of(rule))
