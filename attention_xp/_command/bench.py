"""``bench``: attention against the kernels of the libraries, for sequences of many lengths, as a table and a plot."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from attention_xp._command.calls import Call
from attention_xp._command.curves import Point, measured
from attention_xp._command.described import positive, window
from attention_xp._command.figures import milliseconds, ratio
from attention_xp._command.places import add_backends, find_places
from attention_xp._command.screen import say, table, warn

__all__ = ["add_arguments", "run"]

LENGTHS = "256,512,1024,2048,4096"


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
    curves = measured(places, calls)
    what = f"{args.heads} head{'s' if args.heads > 1 else ''} of width {args.width}, float32{', causal' if args.causal else ''}"
    if args.window is not None:
        what += ", window " + ",".join("none" if side is None else str(side) for side in args.window)
    say(f"{what}; {_machine()}")
    for place, points in curves.items():
        say()
        table(place.name, ("length", "ms", "against", "its ms", "ratio"), list(map(_cells, points)))
    say()
    say("ratio: our time to that of the other; both are of one pair of turns, that with the median ratio")
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
        warn('--output needs matplotlib: pip install "attention-xp[viz]"')
        return False
    if args.output.suffix[1:].lower() not in formats():
        args.parser.error(f"--output must end in one of {', '.join(formats())}, got {str(args.output)!r}")
    if not args.output.absolute().parent.is_dir():
        args.parser.error(f"there is no folder {args.output.absolute().parent}")
    return True


def _cells(point: Point) -> list[str]:
    theirs = "too large" if point.theirs is None else milliseconds(point.theirs)
    return [
        str(point.length),
        milliseconds(point.ours),
        point.other,
        theirs,
        "" if point.ratio is None else ratio(point.ratio),
    ]


def _machine() -> str:
    cores: Any = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"
