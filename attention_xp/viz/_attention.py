"""Attention weights as pictures of matplotlib."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

from attention_xp._checks.numbers import check_flag, check_positive
from attention_xp._public_types import Array
from attention_xp.viz._axes import COLOURS, add_colour_bar, label_tokens, new_axes, write_numbers
from attention_xp.viz._tokens import check_tokens
from attention_xp.viz._weights import check_index, weights_of_heads

__all__ = ["plot_attention"]

_CELL = 0.14  # inches of a token, which lets a label of about 8 points stand beside it
_CELL_OF_NUMBER = 0.36  # inches, which let two digits of about 9 points stand in it
_MOST_NUMBERS = 64  # queries or keys
_LEAST, _MOST = 3.0, 14.0  # inches of a side


class _Look(NamedTuple):
    """How pictures of weights look."""

    colours: Any
    top: float | None  # the weight of the last colour
    has_numbers: bool

    @property
    def cell(self) -> float:
        return _CELL_OF_NUMBER if self.has_numbers else _CELL


def plot_attention(
    weights: Array,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    *,
    head: int | Sequence[int] | str | None = None,
    ax: Any = None,
    vmax: float | None = None,
    cmap: Any = None,
    numbers: bool = False,
) -> Any:
    """Plot attention weights: a row for each query, a column for each key.

    Parameters
    ----------
    weights : array
        ``(1, H, Sq, Sk)``, ``(1, Sq, Sk)`` or ``(Sq, Sk)``, floating, as `scaled_dot_product_attention` returns them: those
        of one batch item, of any library and device.
    query_tokens, key_tokens : sequence of str, optional
        Labels of rows and columns. Without `key_tokens`, those of the queries label the keys as well where ``Sq == Sk``.
    head : int, sequence of int, or "all", optional
        One head, or a grid of several. Default: the mean over all heads.
    ax : matplotlib Axes, optional
        Where to draw one picture. Default: a new figure.
    vmax : float, optional
        The weight that has the last colour; give several pictures the same, such as 1, to compare them. Default: the largest
        weight that is drawn.
    cmap : str or matplotlib Colormap, optional
        Colours from weight 0 on. Default: ``"viridis"``, which all eyes can tell apart, and which prints well in grey.
    numbers : bool, default: False
        Whether to write each weight into its cell, with two digits; for up to 64 queries and keys.

    Returns
    -------
    Axes, or array of Axes
        One, or for a grid an array of them, one for each head.

    Raises
    ------
    TypeError
        If `weights` is no floating array, tokens are no str, or `head` is of the wrong kind.
    ValueError
        If `weights` has another shape, or a number that is negative or not finite; if there is not one token for each
        row or column; if there is no such head; if `ax` is given for a grid; if `vmax` is not positive; if there is no such
        `cmap`; or if there are too many cells for `numbers`.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Colours go with the square root of a weight, as the colour bar says: half-way up stands a quarter of the largest. They start
    at 0, and are the same in all pictures of a grid. Characters of tokens that cannot be seen are shown as Python's strings
    are written. ``axes.figure.savefig("heads.png", dpi=200)`` writes a file.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import self_attention
    >>> from attention_xp.viz import plot_attention
    >>> _, weights = self_attention(np.eye(3), 3, is_causal=True)
    >>> axes = plot_attention(weights, ["the", "cat", "sat"])
    >>> axes.get_xlabel(), axes.get_title()
    ('key', '')
    """
    values = weights_of_heads(weights)
    H, Sq, Sk = values.shape
    rows, columns = _tokens(query_tokens, key_tokens, Sq, Sk)
    look = _look(vmax, cmap, numbers, max(Sq, Sk))
    if head is None:
        title = "" if H == 1 else f"mean of {H} heads"
        return _plot_one(values.mean(axis=0), rows, columns, title, ax, look)
    if isinstance(head, Integral):
        i = check_index("head", head, H)
        return _plot_one(values[i], rows, columns, f"head {i}", ax, look)
    heads = _several(head, H)
    if ax is not None:
        raise ValueError("ax can be given for one picture: several heads are drawn in a figure of their own")
    return _plot_grid(values, heads, rows, columns, look)


def _look(vmax: Any, cmap: Any, numbers: Any, longest: int) -> _Look:
    if check_flag("numbers", numbers) and longest > _MOST_NUMBERS:
        raise ValueError(f"numbers are written for up to {_MOST_NUMBERS} queries and keys, got {longest}")
    return _Look(COLOURS if cmap is None else cmap, None if vmax is None else check_positive("vmax", vmax), numbers)


def _tokens(query_tokens: Any, key_tokens: Any, Sq: int, Sk: int) -> tuple[list[str] | None, list[str] | None]:
    rows = None if query_tokens is None else check_tokens("query_tokens", query_tokens, Sq, "queries")
    if key_tokens is None:
        return rows, rows if Sq == Sk else None
    return rows, check_tokens("key_tokens", key_tokens, Sk, "keys")


def _several(head: Any, H: int) -> list[int]:
    """Return the heads of a grid."""
    if isinstance(head, str):
        if head != "all":
            raise ValueError(f"head must be an int, a sequence of int, or 'all', got {head!r}")
        return list(range(H))
    if not isinstance(head, Sequence):
        raise TypeError(f"head must be an int, a sequence of int, or 'all', got {type(head).__name__}")
    if not head:
        raise ValueError("head must name at least one head, got none")
    return [check_index("head", i, H) for i in head]


def _size(shape: tuple[int, int], cell: float) -> tuple[float, float]:
    """Return width and height in inches of a picture of so many queries and keys, with room for labels and colour bar."""
    Sq, Sk = shape
    scale = min(max(cell, _LEAST / max(Sq, Sk)), _MOST / max(Sq, Sk))
    return Sk * scale + 2.2, max(Sq * scale, 1.0) + 1.2


def _plot_one(matrix: Any, rows: list[str] | None, columns: list[str] | None, title: str, ax: Any, look: _Look) -> Any:
    axes = new_axes(size=_size(matrix.shape, look.cell))[0, 0] if ax is None else ax
    top = float(matrix.max())
    height, width = _inches(axes, matrix.shape)
    image = _draw(axes, matrix, top, look, height)
    label_tokens(axes.yaxis, rows, matrix.shape[0], height)
    label_tokens(axes.xaxis, columns, matrix.shape[1], width)
    axes.set(xlabel="key", ylabel="query", title=title)
    _add_scale(image, axes, top)
    return axes


def _plot_grid(values: Any, heads: list[int], rows: list[str] | None, columns: list[str] | None, look: _Look) -> Any:
    """Draw heads beside and below each other; those at the edges have labels."""
    across = math.ceil(math.sqrt(len(heads)))
    down = math.ceil(len(heads) / across)
    Sq, Sk = values.shape[1:]
    side = min(max(look.cell * max(Sq, Sk), 1.8), _MOST / max(across, down))  # inches
    size = across * side * Sk / max(Sq, Sk) + 2.2, down * (side * Sq / max(Sq, Sk) + 0.3) + 1.0
    grid = new_axes(down, across, size)
    axes = grid.ravel()[: len(heads)]
    for unused in grid.ravel()[len(heads) :]:
        unused.remove()
    top = float(values[heads].max())
    for place, (one, i) in enumerate(zip(axes, heads, strict=True)):
        image = _draw(one, values[i], top, look, side * Sq / max(Sq, Sk))
        one.set_title(f"head {i}", fontsize="medium")
        label_tokens(one.yaxis, rows, Sq, side * Sq / max(Sq, Sk))
        label_tokens(one.xaxis, columns, Sk, side * Sk / max(Sq, Sk))
        one.tick_params(labelbottom=place + across >= len(heads), labelleft=place % across == 0)
    axes[0].figure.supxlabel("key", fontsize="medium")
    axes[0].figure.supylabel("query", fontsize="medium")
    _add_scale(image, axes, top)
    return axes


def _draw(axes: Any, matrix: Any, top: float, look: _Look, height: float) -> Any:
    """Draw weights up to the largest into Axes that are so many inches high."""
    from matplotlib.colors import PowerNorm  # noqa: PLC0415

    # Among many keys most weights are small; square roots tell them apart, and the colour bar has the numbers.
    norm = PowerNorm(0.5, vmin=0.0, vmax=look.top or top or 1.0, clip=True)
    image = axes.imshow(matrix, cmap=look.colours, norm=norm, interpolation="nearest")
    if look.has_numbers:
        write_numbers(image, 72.0 * height / len(matrix))
    return image


def _add_scale(image: Any, axes: Any, top: float) -> None:
    """Add the colour bar; its end is pointed where a weight is larger."""
    extend = "max" if top > image.norm.vmax else "neither"
    add_colour_bar(image, axes, "attention weight (square-root colours)", extend)


def _inches(axes: Any, shape: tuple[int, int]) -> tuple[float, float]:
    """Return height and width that cells of one size take in the Axes, before labels and colour bar are laid out."""
    box = axes.get_window_extent()
    dpi, (Sq, Sk) = axes.figure.dpi, shape
    cell = min(box.width / Sk, box.height / Sq) / dpi
    return float(cell * Sq), float(cell * Sk)
