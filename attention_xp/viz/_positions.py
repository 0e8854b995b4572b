"""Positional encodings and biases as pictures of matplotlib."""

from typing import Any

import numpy as np

from attention_xp._backend.host import as_numpy
from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, shapes
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import Array
from attention_xp.biases import Bias
from attention_xp.biases._bias import sampled
from attention_xp.biases._drawing import as_curves
from attention_xp.viz._axes import COLOURS, add_colour_bar, colours_of_heads, label_heads, new_axes

__all__ = ["plot_positions"]


def plot_positions(encoding_or_bias: Array | Bias, *, length: int = 64, ax: Any = None) -> Any:
    """Plot what positions add: an encoding to the input, or a bias to the scores.

    Parameters
    ----------
    encoding_or_bias : array or Bias
        An encoding ``(S, d_model)``, as `positional_encoding` returns it, of any library and device; or a rule from
        ``attention_xp.biases``.
    length : int, default: 64
        Number of queries and keys for which a bias is drawn.
    ax : matplotlib Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    Axes
        Of an encoding, a row for each position. Of a bias that depends on the distance alone, its value over the distance,
        a line for each head; of any other, a row for each query, for the first batch item and head.

    Raises
    ------
    TypeError
        If `encoding_or_bias` is neither a floating array nor a `Bias`.
    ValueError
        If an encoding has not two axes, or is empty.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from attention_xp import alibi_slopes, positional_encoding
    >>> from attention_xp.biases import AlibiBias
    >>> from attention_xp.viz import plot_positions
    >>> plot_positions(positional_encoding(100, 64)).get_xlabel()
    'dimension'
    >>> plot_positions(AlibiBias(alibi_slopes(4))).get_xlabel()
    'distance from query to key, k - q'
    """
    length = check_count("length", length)
    if not isinstance(encoding_or_bias, Bias):
        return _plot_encoding(_checked(encoding_or_bias), ax)
    values = sampled(encoding_or_bias, length)
    curves = as_curves(values)
    axes = new_axes()[0, 0] if ax is None else ax
    if curves is None:
        _draw_matrix(axes, values[0])
        heading = f"{encoding_or_bias!r}, first batch item and head"
    else:
        _draw_curves(axes, curves)
        heading = repr(encoding_or_bias)
    axes.set_title(heading, fontsize="medium", parse_math=False, wrap=True)
    return axes


def _checked(encoding: Any) -> Any:
    """Return an encoding as an array of NumPy."""
    if not hasattr(encoding, "dtype"):
        raise TypeError(f"encoding_or_bias must be a floating array or a Bias, got {type(encoding).__name__}")
    check_floating(common_namespace(encoding=encoding), encoding=encoding)
    if encoding.ndim != 2 or 0 in encoding.shape:
        raise ValueError(f"encoding must not be empty: expected encoding (S, d_model), {shapes(encoding=encoding)}")
    return np.asarray(as_numpy(encoding), dtype=np.float32)


def _plot_encoding(encoding: Any, ax: Any) -> Any:
    axes = new_axes()[0, 0] if ax is None else ax
    image = axes.imshow(encoding, cmap=COLOURS, aspect="auto", interpolation="nearest")
    axes.set(xlabel="dimension", ylabel="position", title="Positional encoding")
    add_colour_bar(image, axes, "value added to the input")
    return axes


def _draw_matrix(axes: Any, values: Any) -> None:
    """Draw a matrix; what is excluded by minus infinity stays empty."""
    image = axes.imshow(np.ma.masked_invalid(values), cmap=COLOURS, interpolation="nearest")
    axes.set(xlabel="key position", ylabel="query position")
    add_colour_bar(image, axes, "value added to the score")


def _draw_curves(axes: Any, curves: Any) -> None:
    """Draw a line for each head, with gaps where minus infinity excludes a pair."""
    far = curves.shape[1] // 2
    distances = np.arange(-far, far + 1)
    for i, (line, colour) in enumerate(zip(curves, colours_of_heads(len(curves)), strict=True)):
        axes.plot(distances, np.ma.masked_invalid(line), color=colour, label=f"head {i}")
    axes.axvline(0, color="0.6", linestyle=":", linewidth=1)
    axes.set(xlabel="distance from query to key, k - q", ylabel="value added to the score")
    axes.margins(x=0.01)
    label_heads(axes, len(curves))
