"""``bench``: attention against the kernels of the libraries, for sequences of many lengths, as a table and a plot."""

import argparse
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

from attention_xp._command.calls import Call
from attention_xp._command.described import positive, window
from attention_xp._command.duel import Pace, Point, duel, take_turn
from attention_xp._command.figures import milliseconds, ratio
from attention_xp._command.peers import FORMULA, peer
from attention_xp._command.places import Place, add_backends, find_places
from attention_xp._command.screen import say, table, tell_progress, warn

__all__ = ["add_arguments", "run"]

LENGTHS = "256,512,1024,2048,4096"
MOST_SCORES = 2**28  # of all heads, up to which the formula has a chance to hold them
PACE = Pace(rounds=7, turn=0.05, limit=6.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_backends(parser)
    add = parser.add_argument
    add("--lengths", type=_lengths, default=LENGTHS, metavar="N,N,...", help="queries and keys; default: %(default)s")
    add("--heads", type=positive, default=8, help="default: %(default)s")
    add("--width", type=positive, default=64, help="of a head; default: %(default)s")
    add("--causal", action="store_true", help="no query attends keys after it")
    add("--window", type=window, metavar="LEFT[,RIGHT]", help="each query attends so many keys before and after it")
    add(
        "--output", type=Path, metavar="FILE", help="draw time against length into this file, such as bench.svg or .png"
    )
    parser.set_defaults(parser=parser)


def _lengths(text: str) -> list[int]:
    return sorted(set(map(positive, text.split(","))))


def run(args: argparse.Namespace) -> int:
    """Measure every library; return 1 where one that was asked for, or the library for plots, is missing."""
    if args.output is not None and not _can_draw(args):
        return 1
    places, missing = find_places(args.backend)
    options = {"is_causal": args.causal, "window": args.window}
    calls = [Call.square(args.heads, length, args.width, **options) for length in args.lengths]
    curves = _measured(places, calls)
    what = f"{args.heads} heads of width {args.width}, float32{', causal' if args.causal else ''}"
    what += f", window {args.window}" if args.window else ""
    say(f"{what}; {_machine()}")
    for place, points in curves.items():
        say()
        table(place.name, ("length", "ms", "against", "its ms", "ratio"), list(map(_cells, points)))
    say()
    say("ratio: our time to that of the other, the median of pairs in turns")
    for sentence in missing:
        say(sentence)
    if args.output is not None:
        from attention_xp._command.plot import draw  # noqa: PLC0415  # needs matplotlib

        draw(curves, what, args.output)
        say(f"plot: {args.output}")
    return 1 if args.backend and missing else 0


def _can_draw(args: argparse.Namespace) -> bool:
    """Whether matplotlib is here; a file that it cannot write is a wrong usage."""
    try:
        from attention_xp._command.plot import formats  # noqa: PLC0415
    except ImportError:
        warn("--output needs matplotlib: pip install 'attention-xp[viz]'")
        return False
    if args.output.suffix[1:].lower() not in formats():
        args.parser.error(f"--output must end in one of {', '.join(formats())}, got {str(args.output)!r}")
    if not args.output.absolute().parent.is_dir():
        args.parser.error(f"there is no folder {args.output.absolute().parent}")
    return True


def _measured(places: list[Place], calls: list[Call]) -> dict[Place, list[Point]]:
    curves: dict[Place, list[Point]] = {place: [] for place in places}
    work = [(place, call) for place in places for call in calls]
    for done, (place, call) in enumerate(work):
        tell_progress(done, len(work), f"{place.backend} on {place.device_name}: {call.queries}")
        curves[place].append(_point(place, call))
    tell_progress(len(work), len(work), "done")
    return curves


def _point(place: Place, call: Call) -> Point:
    arrays = call.arrays(place)
    has_kernel = place.backend in ("torch", "jax")
    if not has_kernel and call.heads * call.queries * call.keys > MOST_SCORES:
        return Point(call.queries, FORMULA, None)
    ours = call.ours(place, arrays)
    name, theirs = peer(place, call, arrays)
    return Point(call.queries, name, duel(partial(take_turn, ours), partial(take_turn, theirs), PACE))


def _cells(point: Point) -> list[str]:
    if point.duel is None:
        return [str(point.length), "", f"{point.other}: too large", "", ""]
    d = point.duel
    return [str(point.length), milliseconds(d.ours), point.other, milliseconds(d.theirs), ratio(d.ratio)]


def _machine() -> str:
    cores: Any = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"
