"""The tiles that a block of query rows visits, and the rules to be evaluated on each."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from attention_xp.masks import Mask

__all__ = ["Tile", "bounds", "plan", "side_by_side", "touching"]

Bounds = tuple[int, int]
Flags = Sequence[Sequence[bool]]  # by chunk, by strip
Verdict = tuple[tuple[bool, ...], tuple[bool, ...]]  # possible and certain, by chunk


class Tile(NamedTuple):
    """A rectangle of scores, by half-open bounds, and the rules that are undecided inside.

    Or a band of several steps: each step is such a rectangle, moved along the diagonal by as many rows and keys as it has
    rows. The first stretch of keys and the mixed rows are then those of the first step, and move with the steps; the other
    stretches are the same for all steps.
    """

    rows: Bounds  # of all steps
    columns: tuple[Bounds, ...]  # one stretch of keys, or several side by side
    mixed: Bounds  # the rows on which some rule is undecided, over the first stretch of keys
    rules: tuple[Mask, ...]  # the undecided rules
    steps: int = 1

    @property
    def step(self) -> int:
        """Rows of a step."""
        return (self.rows[1] - self.rows[0]) // self.steps

    @property
    def stretches(self) -> tuple[Bounds, ...]:
        """The keys that the steps visit together."""
        (start, end), *others = self.columns
        return ((start, end + (self.steps - 1) * self.step), *others)


def bounds(start: int, stop: int, size: int) -> list[Bounds]:
    """Cut a range into pieces of one size; the last may be shorter.

    Where torch traces sizes, a graph depends on the number of pieces alone, and serves all lengths with that number.
    """
    if start < stop <= start + size:
        return [(start, stop)]
    count = -(-(stop - start) // size)
    return [(start + i * size, start + (i + 1) * size if i < count - 1 else stop) for i in range(count)]


def side_by_side(lengths: Iterable[int]) -> Iterator[slice]:
    """Yield the slices of pieces of these lengths, laid side by side."""
    done = 0
    for length in lengths:
        yield slice(done, done + length)
        done += length


def touching(stretches: Iterable[Bounds]) -> list[Bounds]:
    """Return stretches in order; adjacent ones are joined."""
    joined: list[Bounds] = []
    for start, end in sorted(stretches):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def plan(
    chunks: Sequence[Bounds],
    strips: Sequence[Bounds],
    answers: Sequence[tuple[Mask, Flags, Flags]],
    columns: int,
    *,
    may_skip: bool = False,
    widest: int = 0,
) -> list[Tile]:
    """Return the tiles that are not empty; those with the same rows and rules are joined, up to `columns` keys.

    `answers` holds for each rule whether it possibly, and whether it certainly, allows the pairs of each chunk of rows and
    each strip of keys. With `may_skip`, full tiles are joined over gaps between their keys. A tile of fewer rows may have
    more keys, up to `widest`, as long as it does not have more scores.
    """
    height = chunks[-1][1] - chunks[0][0]
    rules = [rule for rule, _, _ in answers]
    by_strip = [
        (list(zip(*possible, strict=True)), list(zip(*certain, strict=True))) for _, possible, certain in answers
    ]
    known: dict[tuple[Verdict, ...], list[_Kind]] = {}
    kinds: dict[_Kind, list[list[Bounds]]] = {}
    for j, strip in enumerate(strips):
        verdicts = tuple((possible[j], certain[j]) for possible, certain in by_strip)
        if verdicts not in known:
            known[verdicts] = list(_kinds(chunks, verdicts))
        for kind in known[verdicts]:
            most = max(columns, min(widest, columns * height // (kind.rows[1] - kind.rows[0])))
            _join(kinds.setdefault(kind, []), strip, most, may_skip=may_skip and len(kind.rules) == 0)
    return [
        Tile(kind.rows, tuple(stretches), kind.mixed, tuple(rules[i] for i in kind.rules))
        for kind, tiles in kinds.items()
        for stretches in tiles
    ]


class _Kind(NamedTuple):
    """What tiles have in common that may be joined; rules are given by number, because they need not be hashable."""

    rows: Bounds
    mixed: Bounds
    rules: tuple[int, ...]


def _kinds(chunks: Sequence[Bounds], verdicts: tuple[Verdict, ...]) -> Iterator[_Kind]:
    """Return rows, mixed rows and undecided rules of each run of chunks under a strip."""
    for first, end in _runs([all(possible[i] for possible, _ in verdicts) for i in range(len(chunks))]):
        undecided = {
            i: [rule for rule, (_, certain) in enumerate(verdicts) if not certain[i]] for i in range(first, end)
        }
        mixed = [i for i, some in undecided.items() if some]
        rows = (chunks[first][0], chunks[end - 1][1])
        if mixed:
            here = tuple(rule for rule in range(len(verdicts)) if any(rule in some for some in undecided.values()))
            yield _Kind(rows, (chunks[mixed[0]][0], chunks[mixed[-1]][1]), here)
        else:
            yield _Kind(rows, (0, 0), ())


def _join(tiles: list[list[Bounds]], strip: Bounds, columns: int, *, may_skip: bool) -> None:
    """Append a strip to the last tile if it fits there, otherwise begin a new tile."""
    last = tiles[-1] if tiles else []
    follows = bool(last) and last[-1][1] == strip[0]
    if sum(end - start for start, end in [*last, strip]) > columns or not (follows or (last and may_skip)):
        tiles.append([strip])
    elif follows:
        last[-1] = (last[-1][0], strip[1])
    else:
        last.append(strip)


def _runs(flags: Sequence[bool]) -> list[Bounds]:
    """Return the stretches of consecutive true flags."""
    runs: list[Bounds] = []
    for i, flag in enumerate(flags):
        if flag and runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        elif flag:
            runs.append((i, i + 1))
    return runs
