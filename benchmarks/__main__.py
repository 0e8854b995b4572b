"""``python -m benchmarks [NAME ...]``: run the comparisons and print a table."""

import argparse

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import dense

SUITES = {"dense": dense.run}


def main() -> None:
    """Run the named suites, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", nargs="*", choices=[[], *SUITES], help=f"one of {', '.join(SUITES)}; default: all")
    names = parser.parse_args().suite or list(SUITES)
    console = Console()
    for name in names:
        table = Table("shape", "contender", "ours", "formula", "ratio", title=f"{name}: medians of interleaved pairs")
        for shape, contender, outcome in track(SUITES[name](), description=name, console=Console(stderr=True)):
            table.add_row(shape, contender, _ms(outcome.ours), _ms(outcome.theirs), f"{outcome.ratio:.2f}")
        console.print(table)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"


if __name__ == "__main__":
    main()
