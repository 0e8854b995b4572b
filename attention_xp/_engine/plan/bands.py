"""Bands along the diagonal, for windows: rows in steps, whose keys move along with them.

The step that begins at row r visits the keys from r + a to r + b, with the same a and b for all steps. Steps are stacked
like heads, so that each of them visits few more keys than the window is wide. The keys that all rows attend, such as the
global ones of Longformer, are further columns of the band.
"""

from typing import NamedTuple

import numpy as np

from attention_xp._engine.plan.answers import Answers, Grid, Item, span_of
from attention_xp._engine.plan.plan import Bounds, touching
from attention_xp._scores.identity import identity
from attention_xp._scores.region import span_between
from attention_xp.masks import Mask

__all__ = ["Band", "band_of"]

_SEARCHED = 2**12  # keys to either side of a row, among which the ends of a window are looked for


class Band(NamedTuple):
    """The keys of the steps of some rows."""

    near: Bounds  # keys along the diagonal, counted from the position of the first row of a step
    far: tuple[Bounds, ...]  # the other keys, which all rows attend
    rules: tuple[Mask, ...]  # decide about the pairs along the diagonal


def band_of(rules: tuple[Mask, ...], grid: Grid, item: Item, answers: Answers, rows: Bounds) -> Band | None:
    """Return the band that some rows belong to, or ``None``."""
    if grid.step == 0 or (rows[1] - rows[0]) % grid.step or not isinstance(item.keys, int):
        return None
    _, possible, certain = answers.about(rows)
    seen, full = np.all(possible, axis=0).any(axis=0), np.all(certain, axis=(0, 1))
    edges = np.flatnonzero(seen & ~full)
    if len(edges) == 0:
        return None
    inside = slice(int(edges[0]), int(edges[-1]) + 1)
    start, end = answers.strips[inside][0][0], answers.strips[inside][-1][1]
    span = span_of(rows, (start, end), item)
    here = tuple(rule.undecided(span) for rule in rules if not rule.reach(span)[1])
    at, last_at = (row + item.offset - item.key_offset for row in (rows[0], rows[1] - grid.step))
    if not all(rule.shift_invariant for rule in here) or max(last_at - start, end - at) > _SEARCHED:
        return None
    near = _window(here, grid.step)
    if near is None or near[1] - near[0] > grid.width:
        return None
    if at + near[0] < start or last_at + near[1] > end:  # another rule, or the end of the keys, cuts the window off
        return None
    seen[inside] = False
    return Band(near, tuple(touching(answers.strips[j] for j in np.flatnonzero(seen).tolist())), here)


_WINDOWS: dict[object, Bounds | None] = {}
_MOST_WINDOWS = 256


def _window(rules: tuple[Mask, ...], rows: int) -> Bounds | None:
    """Return the keys that so many rows may attend, counted from the first row; ``None`` if they are too far apart."""
    name = identity(rules), rows
    if name in _WINDOWS:
        return _WINDOWS[name]
    if len(_WINDOWS) >= _MOST_WINDOWS:
        _WINDOWS.clear()
    return _WINDOWS.setdefault(name, _searched(rules, rows))


def _searched(rules: tuple[Mask, ...], rows: int) -> Bounds | None:
    """Ask rules about keys to either side; they depend on the distance of query and key alone, and not on the position."""
    keys = np.arange(2 * _SEARCHED)
    span = span_between(np, (_SEARCHED, _SEARCHED + rows), (keys, keys + 1), (0, 0))
    possible = [np.broadcast_to(rule.reach(span)[0], keys.shape) for rule in rules]
    seen = np.flatnonzero(np.all(possible, axis=0))
    if len(seen) == 0 or seen[0] == 0 or seen[-1] == keys[-1]:
        return None
    return int(seen[0]) - _SEARCHED, int(seen[-1]) + 1 - _SEARCHED
