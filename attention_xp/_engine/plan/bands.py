"""Bands along the diagonal: rows whose steps see the same keys, each as much further on as its own rows are.

Steps are stacked like heads, so that each of them visits little more keys than a window is wide, and beside these the
keys that all rows see.
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
    """What all steps of some rows see alike."""

    near: Bounds  # keys, counted from the position of the first row of a step
    far: tuple[Bounds, ...]  # keys that all rows see, wherever they are
    rules: tuple[Mask, ...]  # decide about the keys that are near


def band_of(rules: tuple[Mask, ...], grid: Grid, item: Item, answers: Answers, rows: Bounds) -> Band | None:
    """Return the band that some rows are a part of, ``None`` where they are of none."""
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
    """Return which keys so many rows may attend, counted from the first of these rows; ``None`` if some are not near."""
    name = identity(rules), rows
    if name in _WINDOWS:
        return _WINDOWS[name]
    if len(_WINDOWS) >= _MOST_WINDOWS:
        _WINDOWS.clear()
    return _WINDOWS.setdefault(name, _searched(rules, rows))


def _searched(rules: tuple[Mask, ...], rows: int) -> Bounds | None:
    """Ask rules that hang on the distance of query and key alone: they answer the same wherever they are asked."""
    keys = np.arange(2 * _SEARCHED)
    span = span_between(np, (_SEARCHED, _SEARCHED + rows), (keys, keys + 1), (0, 0))
    possible = [np.broadcast_to(rule.reach(span)[0], keys.shape) for rule in rules]
    seen = np.flatnonzero(np.all(possible, axis=0))
    if len(seen) == 0 or seen[0] == 0 or seen[-1] == keys[-1]:
        return None
    return int(seen[0]) - _SEARCHED, int(seen[-1]) + 1 - _SEARCHED
