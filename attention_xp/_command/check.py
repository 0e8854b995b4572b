"""``check``: attention on every array library of this machine, against the formula in float64."""

import argparse
from functools import partial
from itertools import groupby

from attention_xp._command.duel import Duel, Pace, duel, take_turn
from attention_xp._command.figures import bytes_of, milliseconds, ratio
from attention_xp._command.jobs import Contest, contests
from attention_xp._command.peak import extra_bytes
from attention_xp._command.places import Place, add_backends, find_places
from attention_xp._command.screen import say, table, tell_progress

__all__ = ["add_arguments", "run"]

TOLERANCE = 2e-5  # some 20 times the rounding of the results in float32
PACE = Pace(rounds=5, turn=0.01, limit=0.5)

_COLUMNS = ("", "error", "ms", "against", "its ms", "ratio", "MiB", "its MiB", "verdict")
_LEGEND = (
    "error: the largest difference from the formula in float64. ratio: our time to that of the other; both are of one pair of "
    "turns, that with the median ratio. MiB: memory beyond the arguments. formula: all scores in memory; SDPA: torch's scaled_dot_product_attention; "
    "jax.nn: its dot_product_attention."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_backends(parser)


def run(args: argparse.Namespace) -> int:
    """Check every library; return 0 if all is right."""
    places, missing = find_places(args.backend)
    work = list(contests(places))
    rows: list[tuple[Place, list[str]]] = []
    for done, (place, name, prepare) in enumerate(work):
        tell_progress(done, len(work), f"{place.backend} on {place.device_name}: {name}")
        rows.append((place, _row(prepare())))
    tell_progress(len(work), len(work), "done")
    for place, some in groupby(rows, lambda row: row[0]):
        cells = [row for _, row in some]
        table(place.name, _COLUMNS, cells, bad=[i for i, row in enumerate(cells) if row[-1] != "ok"])
        say()
    right = sum(row[-1] == "ok" for _, row in rows)
    say(_LEGEND)
    say()
    say(f"{right} of {len(rows)} checks agree with the float64 formula")
    for sentence in missing:
        say(sentence)
    return 1 if right < len(rows) or not rows or (args.backend and missing) else 0


def _row(contest: Contest) -> list[str]:
    error = contest.largest_error()
    mine, its = (turn.wall for turn in _measured(contest).middle)
    sides = contest.ours, contest.theirs
    ours, theirs = (bytes_of(extra_bytes(side)) for side in sides)
    return [
        contest.job,
        f"{error:.0e}",
        milliseconds(mine),
        contest.other,
        milliseconds(its),
        ratio(mine / its),
        ours,
        theirs,
        "ok" if error <= TOLERANCE else "WRONG",  # NaN is not right
    ]


def _measured(contest: Contest) -> Duel:
    """Let both take turns."""
    turn = partial(take_turn, pause=0.0, untimed=0)  # quick: what the first turns warm up is not kept
    return duel(partial(turn, contest.ours), partial(turn, contest.theirs), PACE)
