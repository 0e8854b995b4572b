"""Attention weights as pictures of matplotlib."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from attention_xp._public_types import Array
from attention_xp.viz._axes import COLOURS, add_colour_bar, label_tokens, new_axes
from attention_xp.viz._tokens import check_tokens
from attention_xp.viz._weights import check_index, weights_of_heads

__all__ = ["plot_attention"]

_CELL = 0.14  # inches of a token, which lets a label of about 8 points stand beside it
_LEAST, _MOST = 3.0, 14.0  # inches of a side


def plot_attention(
    weights: Array,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    *,
    head: int | Sequence[int] | str | None = None,
    ax: Any = None,
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
        row or column; if there is no such head; or if `ax` is given for a grid.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Colours go with the square root of a weight, start at 0, and are the same in all pictures of a grid. Characters of tokens
    that cannot be seen are shown as Python's strings are written.

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
    if head is None:
        title = "" if H == 1 else f"mean of {H} heads"
        return _plot_one(values.mean(axis=0), rows, columns, title, ax)
    if isinstance(head, Integral):
        i = check_index("head", head, H)
        return _plot_one(values[i], rows, columns, f"head {i}", ax)
    heads = _several(head, H)
    if ax is not None:
        raise ValueError("ax can be given for one picture: several heads are drawn in a figure of their own")
    return _plot_grid(values, heads, rows, columns)


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


def _size(Sq: int, Sk: int) -> tuple[float, float]:
    """Return width and height in inches of a picture of so many queries and keys, with room for labels and colour bar."""
    scale = min(max(_CELL, _LEAST / max(Sq, Sk)), _MOST / max(Sq, Sk))
    return Sk * scale + 2.2, max(Sq * scale, 1.0) + 1.2


def _plot_one(matrix: Any, rows: list[str] | None, columns: list[str] | None, title: str, ax: Any) -> Any:
    axes = new_axes(size=_size(*matrix.shape))[0, 0] if ax is None else ax
    image = _draw(axes, matrix, float(matrix.max()))
    height, width = _inches(axes)
    label_tokens(axes.yaxis, rows, matrix.shape[0], height)
    label_tokens(axes.xaxis, columns, matrix.shape[1], width)
    axes.set(xlabel="key", ylabel="query", title=title)
    add_colour_bar(image, axes, "attention weight")
    return axes


def _plot_grid(values: Any, heads: list[int], rows: list[str] | None, columns: list[str] | None) -> Any:
    """Draw heads beside and below each other; those at the edges have labels."""
    across = math.ceil(math.sqrt(len(heads)))
    down = math.ceil(len(heads) / across)
    Sq, Sk = values.shape[1:]
    side = min(max(_CELL * max(Sq, Sk), 1.8), _MOST / max(across, down))  # inches
    size = across * side * Sk / max(Sq, Sk) + 2.2, down * (side * Sq / max(Sq, Sk) + 0.3) + 1.0
    grid = new_axes(down, across, size)
    axes = grid.ravel()[: len(heads)]
    for unused in grid.ravel()[len(heads) :]:
        unused.remove()
    top = float(values[heads].max())
    for place, (one, i) in enumerate(zip(axes, heads, strict=True)):
        image = _draw(one, values[i], top)
        one.set_title(f"head {i}", fontsize="medium")
        label_tokens(one.yaxis, rows, Sq, side * Sq / max(Sq, Sk))
        label_tokens(one.xaxis, columns, Sk, side * Sk / max(Sq, Sk))
        one.tick_params(labelbottom=place + across >= len(heads), labelleft=place % across == 0)
    axes[0].figure.supxlabel("key", fontsize="medium")
    axes[0].figure.supylabel("query", fontsize="medium")
    add_colour_bar(image, axes, "attention weight")
    return axes


def _draw(axes: Any, matrix: Any, top: float) -> Any:
    from matplotlib.colors import PowerNorm  # noqa: PLC0415

    # Among many keys most weights are small; square roots tell them apart, and the colour bar has the numbers.
    norm = PowerNorm(0.5, vmin=0.0, vmax=top or 1.0)
    return axes.imshow(matrix, cmap=COLOURS, norm=norm, interpolation="nearest")


def _inches(axes: Any) -> tuple[float, float]:
    """Return height and width that cells of one size take in the Axes, before labels and colour bar are laid out."""
    box = axes.get_window_extent()
    dpi, (left, right), (bottom, top) = axes.figure.dpi, axes.get_xlim(), axes.get_ylim()
    Sk, Sq = abs(right - left), abs(top - bottom)
    cell = min(box.width / Sk, box.height / Sq) / dpi
    return float(cell * Sq), float(cell * Sk)
