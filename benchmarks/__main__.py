"""``python -m benchmarks [SUITE ...]``: run comparisons in turns and print a table for each suite."""

import argparse
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.progress import track

from attention_xp._command.duel import Pace
from benchmarks import borders, curves, report, ring
from benchmarks.borders import BORDERS
from benchmarks.comparison import Row, with_means
from benchmarks.suites import DEFAULT, SUITES
from benchmarks.worker import Workers

QUICK = Pace(rounds=2, turn=0.01)
FIGURES, RING = "curves", "ring"
CLEAR = 1.1  # how much slower than the fastest kernel a choice is printed in bold
PROGRESS = Console(stderr=True)
PICTURES = """\
Full attention on `(1, 8, S, 64)` in float32. Contenders end where the scores of all heads would fill the memory.

![Time against sequence length](../_static/{folder}/time.svg)

![Peak extra memory against sequence length](../_static/{folder}/memory.svg)
"""


def main() -> int:
    """Run what the command line asks for; 1 where a contender failed."""
    arguments = _arguments()
    output = Console(width=None if sys.stdout.isatty() else 200)
    pace = QUICK if arguments.quick else Pace(arguments.rounds)
    failed = False
    for name in arguments.suite or [*DEFAULT, FIGURES]:
        if name == FIGURES:
            _figures(output, pace, quick=arguments.quick, write=arguments.write)
            continue
        if name == RING:
            _ring(output, pace, quick=arguments.quick, write=arguments.write)
            continue
        if name in BORDERS:
            failed |= _borders(output, name, pace, quick=arguments.quick, write=arguments.write)
            continue
        rows = _rows(name, pace, quick=arguments.quick)
        failed |= any(row.failed for row in rows)
        output.print(report.table(name, rows))
        if arguments.write:
            lead = (SUITES[name].__doc__ or "").strip()
            report.write_section(name, f"{lead}\n\n{report.markdown(rows)}\n\n{report.environment()}")
    output.print(report.environment(), highlight=False)
    return int(failed)


def _arguments() -> argparse.Namespace:
    meanings = {**SUITES, FIGURES: curves, RING: ring, **BORDERS}
    names = list(meanings)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(["suites:", *(f"  {name:<15} {_first_line(each)}" for name, each in meanings.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rare = f"all but tiles, {RING} and {', '.join(BORDERS)} by default"
    parser.add_argument("suite", nargs="*", metavar="SUITE", help=f"one of those below; {rare}")
    parser.add_argument("--rounds", type=int, default=Pace().rounds, help="pairs of turns (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds: a smoke test")
    parser.add_argument("--write", action="store_true", help="write the sections and figures of the documentation")
    arguments = parser.parse_args()
    if unknown := set(arguments.suite) - set(names):
        parser.error(f"no suite {', '.join(sorted(unknown))}, choose from {', '.join(names)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds is at least 1, got {arguments.rounds}")
    if arguments.quick and arguments.write:
        parser.error("--quick measures nothing that is worth writing")
    return arguments


def _first_line(each: object) -> str:
    return (each.__doc__ or "").strip().partition("\n")[0]


def _rows(name: str, pace: Pace, *, quick: bool) -> list[Row]:
    comparisons = [each.smaller() if quick else each for each in SUITES[name]()]
    with Workers() as workers:
        return list(
            with_means([each.run(workers, pace) for each in track(comparisons, description=name, console=PROGRESS)])
        )


def _borders(output: Console, name: str, pace: Pace, *, quick: bool, write: bool) -> bool:
    """Print and write which kernel is the fastest; return whether one failed."""
    with PROGRESS.status(name):
        lines = list(borders.measure(name, pace, quick=quick))
    result = report.grid(name, borders.COLUMNS)
    for line in lines:
        result.add_row(*borders.cells(line), style="dim" if line.problem else "bold" if line.loss > CLEAR else "")
    output.print(result)
    if write:
        lead = (BORDERS[name].__doc__ or "").strip()
        body = report.markdown_grid(borders.COLUMNS, map(borders.cells, lines))
        report.write_section(name, f"{lead}\n\n{body}\n\n{report.environment()}")
    return any(line.problem and not line.problem.startswith("not installed") for line in lines)


def _ring(output: Console, pace: Pace, *, quick: bool, write: bool) -> None:
    """Print what two processes take of the time of one, and what they do in a call."""
    with PROGRESS.status(RING):
        lines = list(ring.measure(pace, quick=quick))
    result, trace = report.grid(RING, ring.COLUMNS), report.grid("ring, a call", ring.TRACE)
    for line in lines:
        result.add_row(*ring.cells(line))
        for event in line.events:
            trace.add_row(*ring.trace_cells(line, event))
        trace.add_section()
    output.print(trace, result)
    if write:
        body = report.markdown_grid(ring.COLUMNS, map(ring.cells, lines))
        report.write_section(RING, f"{(ring.__doc__ or '').strip()}\n\n{body}\n\n{report.environment()}")


def _figures(output: Console, pace: Pace, *, quick: bool, write: bool) -> None:
    measured = []
    with PROGRESS.status(FIGURES) as status:
        for step in curves.measure(pace, curves.LENGTHS[:2] if quick else curves.LENGTHS):
            if isinstance(step, str):
                status.update(step)
            else:
                measured.append(step)
    output.print(_curve_table(measured))
    if write:
        from benchmarks.plots import STATIC, draw  # noqa: PLC0415  # matplotlib, for this alone

        folder = report.file_name(report.machine())
        draw(measured, STATIC / folder)
        report.write_section("Against sequence length", f"{PICTURES.format(folder=folder)}\n{report.environment()}")


def _curve_table(measured: Iterable[curves.Curve]) -> report.Table:
    result = report.Table("contender", "S", "ms", "MiB", title=FIGURES, title_justify="left")
    for curve in measured:
        for length, time in curve.time.items():
            result.add_row(curve.name, str(length), f"{time:.3f}", f"{curve.memory.get(length, 0):.1f}")
        if curve.problem:
            result.add_row(curve.name, "", curve.problem, "", style="dim")
    return result


if __name__ == "__main__":
    sys.exit(main())
