"""Which tiles a block of query rows has to visit, and which rules it must evaluate on each."""

from collections.abc import Sequence
from typing import NamedTuple

from attention_xp.masks import Mask

__all__ = ["Tile", "bounds", "plan"]

Bounds = tuple[int, int]
Grid = Sequence[Sequence[bool]]


class Tile(NamedTuple):
    """A rectangle of scores: half-open row and column bounds, and what is undecided inside."""

    rows: Bounds
    columns: Bounds
    mixed: Bounds  # rows on which some rule is undecided
    rules: tuple[Mask, ...]  # these rules


def bounds(start: int, stop: int, size: int) -> list[Bounds]:
    """Cut a range into pieces of one size; the last may be shorter."""
    return [(i, min(i + size, stop)) for i in range(start, stop, size)]


def plan(
    chunks: Sequence[Bounds],
    strips: Sequence[Bounds],
    answers: Sequence[tuple[Mask, Grid, Grid]],
    columns: int,
) -> list[Tile]:
    """Return the tiles that are not empty, joined to at most `columns` keys where they are alike.

    `answers` holds for each rule whether it possibly, and whether it certainly, allows the pairs of
    each chunk of rows and each strip of keys.
    """
    done: list[Tile] = []
    pending: list[Tile] = []
    for j, strip in enumerate(strips):
        tiles = [
            _tile(chunks, run, strip, j, answers)
            for run in _runs([all(possible[i][j] for _, possible, _ in answers) for i in range(len(chunks))])
        ]
        if pending and _fit(pending, tiles, columns):
            pending = [old._replace(columns=(old.columns[0], strip[1])) for old in pending]
        else:
            done += pending
            pending = tiles
    return done + pending


def _fit(old: list[Tile], new: list[Tile], columns: int) -> bool:
    """Whether the tiles of a strip continue those before it and may join them."""
    return (
        len(old) == len(new)
        and new[0].columns[1] - old[0].columns[0] <= columns
        and all(
            a._replace(columns=b.columns) == b and a.columns[1] == b.columns[0] for a, b in zip(old, new, strict=True)
        )
    )


def _runs(flags: Sequence[bool]) -> list[Bounds]:
    """Return the stretches of consecutive true flags."""
    runs: list[Bounds] = []
    for i, flag in enumerate(flags):
        if flag and runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        elif flag:
            runs.append((i, i + 1))
    return runs


def _tile(
    chunks: Sequence[Bounds], run: Bounds, strip: Bounds, j: int, answers: Sequence[tuple[Mask, Grid, Grid]]
) -> Tile:
    undecided = {i: [rule for rule, _, certain in answers if not certain[i][j]] for i in range(*run)}
    mixed = [i for i, rules in undecided.items() if rules]
    rules = tuple(rule for rule, _, _ in answers if any(rule in some for some in undecided.values()))
    rows = (chunks[run[0]][0], chunks[run[1] - 1][1])
    if not mixed:
        return Tile(rows, strip, (0, 0), ())
    return Tile(rows, strip, (chunks[mixed[0]][0], chunks[mixed[-1]][1]), rules)
