"""Draw ``docs/_static/strategies.svg``: which rank computes which scores when, strategy by strategy, for four ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

PATH = Path(__file__).with_name("_static") / "strategies.svg"
RANKS = 4
COLOURS = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7"]  # of Okabe and Ito, told apart with any colour vision


class Block(NamedTuple):
    """A rectangle of scores: rows and columns in shards, which rank computes it, and what is written in it."""

    row: float
    column: float
    height: float
    width: float
    rank: int
    text: str


def ring() -> Iterator[Block]:
    """Each rank has its rows, and meets the keys of one rank after the other."""
    for rank in range(RANKS):
        for keys in range(RANKS):
            yield Block(rank, keys, 1, 1, rank, f"{(rank - keys) % RANKS}")


def gathered() -> Iterator[Block]:
    """Each rank has its rows, and all keys at once."""
    for rank in range(RANKS):
        yield Block(rank, 0, 1, RANKS, rank, "all keys")


def ulysses() -> Iterator[Block]:
    """Each rank has all rows and all keys of its heads."""
    for rank in range(RANKS):
        yield Block(2 * (rank // 2), 2 * (rank % 2), 2, 2, rank, f"heads of\nrank {rank}")


def two_axes() -> Iterator[Block]:
    """Two ranks share rows and keys, each with a half of the heads; the keys go round among two such pairs."""
    for rank in range(RANKS):
        of_ring, of_heads = divmod(rank, 2)
        for keys in range(2):
            yield Block(of_ring + 2 * of_heads, 2 * keys, 1, 2, rank, f"{(of_ring - keys) % 2}")


def merged() -> Iterator[Block]:
    """All ranks have the few rows, and each has its keys."""
    for rank in range(RANKS):
        yield Block(1.5, rank, 1, 1, rank, "")


PANELS = {
    "ring_attention": (ring, "rows of a rank", "keys of a rank; numbers are steps"),
    "gathered_attention": (gathered, "rows of a rank", "keys, sent to all beforehand"),
    "ulysses_attention": (ulysses, "all rows", "all keys, for each head"),
    "ulysses_attention\non two axes": (two_axes, "half the heads, then the others", "keys of two ranks; steps"),
    "merged_attention": (merged, "the same few rows", "keys of a rank; then merged"),
}


def draw(axes: Any, name: str) -> None:
    """Draw a strategy."""
    blocks, rows, columns = PANELS[name]
    for block in blocks():
        place = (block.column, block.row)
        axes.add_patch(
            Rectangle(place, block.width, block.height, facecolor=COLOURS[block.rank], edgecolor="white", lw=2)
        )
        middle = block.column + block.width / 2, block.row + block.height / 2
        axes.text(*middle, block.text, ha="center", va="center", fontsize=9, color="black")
    axes.set(xlim=(0, RANKS), ylim=(RANKS, 0), xticks=[], yticks=[], aspect="equal", xlabel=columns, ylabel=rows)
    axes.set_title(name, fontsize=10, family="monospace")
    axes.spines[:].set_visible(False)


def main() -> None:
    """Write the picture; the same numbers give the same file."""
    with mpl.rc_context({"svg.hashsalt": "attention_xp", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(8.0, 6.2), layout="constrained")
        places = figure.subplots(2, 3).ravel()
        for axes, name in zip(places, PANELS, strict=False):
            draw(axes, name)
        places[-1].axis("off")
        for rank, colour in enumerate(COLOURS):
            places[-1].scatter([], [], marker="s", s=90, color=colour, label=f"computed by rank {rank}")
        places[-1].legend(loc="center", frameon=False)
        figure.savefig(PATH, metadata={"Date": None})


if __name__ == "__main__":
    main()
