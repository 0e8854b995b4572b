"""The curves as SVG figures for the documentation."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.curves import Curve

__all__ = ["draw"]

STATIC = Path(__file__).parents[1] / "docs" / "_static"
MARKERS = "osD^vPX*<>"  # one for each contender, so that no line is told by its colour alone
FIGURES = {"time": "milliseconds", "memory": "peak extra memory in MiB, output included"}


def draw(curves: Iterable[Curve], folder: Path) -> list[Path]:
    """Write one figure for each quantity into a folder and return the files."""
    drawn = [curve for curve in curves if curve.time]
    folder.mkdir(exist_ok=True)
    # Fixed ids and no date: the file changes only where the figures do.
    with mpl.rc_context({"svg.hashsalt": "attention_xp", "svg.fonttype": "path"}):
        return [_draw_one(drawn, kind, label, folder / f"{kind}.svg") for kind, label in FIGURES.items()]


def _draw_one(curves: list[Curve], kind: str, label: str, path: Path) -> Path:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(curves):
        points = getattr(curve, kind)
        style = "-" if curve.name.startswith("ours") else "--"
        look = {"linestyle": style, "marker": MARKERS[index], "color": f"C{index}"}
        axes.plot(list(points), list(points.values()), **look, label=curve.name, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({length for curve in curves for length in curve.time})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlabel("sequence length S")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    return path
