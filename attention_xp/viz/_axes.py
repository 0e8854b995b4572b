"""Axes of matplotlib with tokens, heads and a colour bar beside them; matplotlib is imported when it is asked for."""

import math
from typing import Any

import numpy as np

from attention_xp.viz._tokens import shown

__all__ = [
    "COLOURS",
    "add_colour_bar",
    "colours_of_heads",
    "label_heads",
    "label_tokens",
    "new_axes",
    "write_numbers",
]

COLOURS = "viridis"  # its steps look alike to all eyes, and its lightness alone tells them apart
_SMALLEST, _LARGEST = 5.5, 10.0  # points of a label
_LINE = 1.25  # points from label to label, for each point of its height
_FEW_HEADS = 8  # up to which each has an entry in the legend


def new_axes(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.8)) -> Any:
    """Return an array of Axes, (rows, columns), of a new figure of so many inches."""
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError as error:
        raise ImportError('attention_xp.viz plots with matplotlib: pip install "attention-xp[viz]"') from error
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")[1]


def label_tokens(axis: Any, tokens: list[str] | None, count: int, length: float) -> None:
    """Label the cells of an axis of so many inches with tokens, or their numbers where there are none.

    Labels are as large as fits; where that is too small to read, every second, third, ... cell has one.
    """
    room = 72.0 * length / count  # points of a cell
    step = max(1, math.ceil(_SMALLEST * _LINE / room))
    size = min(max(room * step / _LINE, _SMALLEST), _LARGEST)
    if tokens is None:
        step = max(step, math.ceil(count / 10))
    places = range(0, count, step)
    labels = [str(i) if tokens is None else shown(tokens[i]) for i in places]
    # A token is no formula, whatever its dollars say.
    axis.set_ticks(places, labels, fontsize=size, parse_math=False)
    if axis.axis_name == "x" and tokens is not None:
        for label in axis.get_ticklabels():
            label.set(rotation=90, va="top")


def write_numbers(image: Any, side: float) -> None:
    """Write into each cell of an image, so many points wide, its number with two digits, dark on light or light on dark."""
    values = np.asarray(image.get_array())
    lightness = image.cmap(image.norm(values))[..., :3] @ [0.2126, 0.7152, 0.0722]
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if lightness[row, column] > 0.5 else "white"
        image.axes.text(
            column, row, f"{value:.2f}", color=colour, fontsize=min(0.36 * side, _LARGEST), ha="center", va="center"
        )


def add_colour_bar(image: Any, axes: Any, label: str, extend: str = "neither") -> None:
    """Add a colour bar with what its numbers are."""
    figure = np.ravel(axes)[0].figure
    figure.colorbar(image, ax=axes, label=label, shrink=0.8, fraction=0.08, extend=extend)


def colours_of_heads(count: int) -> Any:
    """Return a colour for each head, (H, 4), from dark to light, the lightest left out: it is hard to see on white."""
    from matplotlib import colormaps  # noqa: PLC0415

    return colormaps[COLOURS](np.linspace(0.0, 0.85, count))


def label_heads(axes: Any, count: int) -> None:
    """Tell which line is of which head: in a legend, or by a colour bar where there are many."""
    if count == 1:
        return
    if count <= _FEW_HEADS:
        axes.legend(loc="best", fontsize="small")
        return
    from matplotlib import cm, colors  # noqa: PLC0415

    colours = colors.ListedColormap(colours_of_heads(count))
    mappable = cm.ScalarMappable(colors.BoundaryNorm(np.arange(count + 1) - 0.5, count), colours)
    ticks = range(0, count, max(1, count // 8))
    axes.figure.colorbar(mappable, ax=axes, label="head", ticks=ticks, fraction=0.08)
