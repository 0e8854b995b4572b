"""Time against length as a picture, with matplotlib."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attention_xp._command.curves import Point
from attention_xp._command.places import Place

__all__ = ["draw", "formats"]


def formats() -> list[str]:
    """Return the endings of files that can be written."""
    return sorted(FigureCanvasAgg.get_supported_filetypes())


def draw(curves: dict[Place, list[Point]], what: str, path: Path) -> None:
    """Write a picture: ours with a line, the others dashed in the same colour."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (place, points) in enumerate(curves.items()):
        for style, name, times in (
            ("-o", "attention_xp", [(point.length, point.ours) for point in points]),
            ("--s", points[0].other, [(point.length, point.theirs) for point in points if point.theirs is not None]),
        ):
            lengths, seconds = [length for length, _ in times], [1e3 * time for _, time in times]
            axes.plot(lengths, seconds, style, color=f"C{i}", label=f"{name}, {place.name}")
    ticks = sorted({point.length for points in curves.values() for point in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.set(xlabel="queries and keys", ylabel="time in ms", title=what)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
