"""Masks as pictures of matplotlib: the pairs that they allow, and what that means for tiles."""

import math
from typing import Any

import numpy as np

from attention_xp._backend.host import as_numpy
from attention_xp._checks.numbers import check_count, check_position, check_tile
from attention_xp._public_types import Array
from attention_xp.masks import ArrayMask, Mask
from attention_xp.masks._drawing import density, shares_of_blocks, tile_kinds, title, to_array
from attention_xp.viz._axes import new_axes

__all__ = ["plot_mask"]

_EACH_PAIR = 512  # queries or keys, up to which pairs are drawn one by one
_SIDE = 128  # blocks of pairs along a longer side
_TILES = 16  # along a side, unless tiles are given
# Of three kinds of lightness, and apart for all eyes: nothing is computed, all is, and each pair is asked about.
_KINDS = {"skipped": "#f2f2f2", "mixed": "#f0b040", "whole": "#4c9cd0"}
_SHADE = 0.5  # of black above a pair that is allowed


def plot_mask(
    mask: Mask | Array,
    Sq: int,
    Sk: int,
    *,
    query_offset: int = 0,
    key_offset: int = 0,
    tile: tuple[int, int] | None = None,
    ax: Any = None,
) -> Any:
    """Plot which pairs a mask allows, and which tiles attention would skip, take whole, or ask the mask about.

    Parameters
    ----------
    mask : Mask or array
        A rule, or a boolean array of any library as `ArrayMask` takes it.
    Sq, Sk : int
        Number of queries, from top to bottom, and of keys, from left to right.
    query_offset, key_offset : int, default: 0
        Positions of the first query and of the first key. Both alike show a part further down the diagonal, pair by pair
        where it is at most 512 wide.
    tile : (int, int), optional
        Queries and keys of a tile. Default: a sixteenth of each side.
    ax : matplotlib Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    Axes
        Dark where a pair is allowed; where a pixel stands for several pairs, the darker the more of them are. Below are the
        tiles: skipped, whole or mixed, with the number of each in the legend.

    Raises
    ------
    TypeError
        If `mask` is neither a rule nor a boolean array, or a size or an offset is no int.
    ValueError
        If a size is not positive, or `tile` is no pair of positive ints.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Of a mask that depends on batch item or head, the first is drawn. A tile is mixed where `Mask.reach` cannot tell that
    it is empty or full: there attention evaluates the mask, pair by pair. The sizes of its own tiles depend on the library
    and on the call.

    Nothing but `mask` is drawn: what a call excludes by ``is_causal``, ``window`` or lengths is added by ``&``, as
    ``mask & WindowMask(256, 256)``.

    Examples
    --------
    >>> from attention_xp.masks import CausalMask
    >>> from attention_xp.viz import plot_mask
    >>> axes = plot_mask(CausalMask(), 64, 64, tile=(16, 16))
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['allowed pair', '6 tiles skipped', '4 tiles mixed', '6 tiles whole']
    """
    rule = mask if isinstance(mask, Mask) else ArrayMask(mask)
    sizes = check_count("Sq", Sq, low=1), check_count("Sk", Sk, low=1)
    offsets = check_position("query_offset", query_offset), check_position("key_offset", key_offset)
    tile = check_tile(tile) or (math.ceil(sizes[0] / _TILES), math.ceil(sizes[1] / _TILES))
    shares, kinds = _shares(rule, sizes, offsets), tile_kinds(rule, sizes, offsets[0], tile, offsets[1])
    axes = new_axes(size=_size(sizes))[0, 0] if ax is None else ax
    _draw_tiles(axes, kinds, sizes, offsets, tile)
    _draw_pairs(axes, shares, sizes, offsets)
    share = f"{density(rule, *sizes, *offsets):.2%} of the pairs allowed"
    heading = f"{title(rule, sizes)}\n{share}, tiles of {tile[0]} x {tile[1]}"
    axes.set(xlabel="key position", ylabel="query position")
    axes.set_title(heading, fontsize="medium", parse_math=False, wrap=True)
    _add_legend(axes, kinds)
    return axes


def _shares(mask: Mask, sizes: tuple[int, int], offsets: tuple[int, int]) -> Any:
    """Return the share of allowed pairs in each pixel, of the first batch item and head."""
    if max(sizes) > _EACH_PAIR:
        return np.asarray(list(shares_of_blocks(mask, sizes, offsets[0], _SIDE, offsets[1])))
    pairs = as_numpy(to_array(mask, *sizes, offsets[0], None, None, "bool", offsets[1]))
    return pairs.reshape(-1, *sizes)[0].astype(float)


def _size(sizes: tuple[int, int]) -> tuple[float, float]:
    """Return width and height in inches; a long side is at most four times the other."""
    Sq, Sk = (max(size, max(sizes) / 4) for size in sizes)
    return 5.0 * Sk / max(Sq, Sk) + 2.6, 5.0 * Sq / max(Sq, Sk) + 1.0


def _draw_tiles(axes: Any, kinds: Any, sizes: tuple[int, int], offsets: tuple[int, int], tile: tuple[int, int]) -> None:
    from matplotlib.colors import ListedColormap  # noqa: PLC0415

    rows, keys = ([*range(0, size, step), size] for size, step in zip(sizes, tile, strict=True))
    axes.pcolormesh(
        np.asarray(keys) - 0.5 + offsets[1],
        np.asarray(rows) - 0.5 + offsets[0],
        kinds,
        cmap=ListedColormap(list(_KINDS.values())),
        vmin=-0.5,
        vmax=2.5,
        edgecolors="white",
        linewidth=0.6,
        zorder=0,
    )


def _draw_pairs(axes: Any, shares: Any, sizes: tuple[int, int], offsets: tuple[int, int]) -> None:
    """Draw the shares of allowed pairs above the tiles, which are seen through them."""
    (top, left), (Sq, Sk) = offsets, sizes
    edges = left - 0.5, left + Sk - 0.5, top + Sq - 0.5, top - 0.5
    aspect = "equal" if max(sizes) <= 4 * min(sizes) else "auto"
    shade = np.zeros((*shares.shape, 4))
    shade[..., 3] = _SHADE * shares
    axes.imshow(shade, extent=edges, interpolation="nearest", aspect=aspect, zorder=1)


def _add_legend(axes: Any, kinds: Any) -> None:
    from matplotlib.legend_handler import HandlerTuple  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    # An allowed pair darkens the colour of its tile: one sample for each kind of tile that can have some.
    pairs = tuple(Patch(facecolor=_darkened(_KINDS[kind]), linewidth=0) for kind in ("mixed", "whole"))
    handles: list[Any] = [pairs]
    labels = ["allowed pair"]
    for kind, (name, colour) in enumerate(_KINDS.items()):
        count = int((kinds == kind).sum())
        text = f"{count} {'tile' if count == 1 else 'tiles'} {name}"
        handles.append(Patch(facecolor=colour, edgecolor="#808080", linewidth=0.5))
        labels.append(text)
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
    )  # fmt: skip


def _darkened(colour: str) -> Any:
    """Return a colour as it is seen below the shade of an allowed pair."""
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    return tuple((1.0 - _SHADE) * part for part in to_rgb(colour))
