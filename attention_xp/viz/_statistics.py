"""Statistics of attention as pictures of matplotlib: for sequences whose weights nobody can hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_xp._backend.host import as_numpy
from attention_xp._statistics import AttentionStatistics
from attention_xp.viz._axes import colours_of_heads, label_heads, new_axes

__all__ = ["plot_statistics"]

_POINTS = 256  # of a line, at most


def plot_statistics(statistics: AttentionStatistics[Any], *, ax: Sequence[Any] | None = None) -> Any:
    """Plot how sharp the attention of each query is, and how much of it each key receives.

    Parameters
    ----------
    statistics : AttentionStatistics
        What `attention_statistics` returns, of one batch item: ``entropy`` ``(1, H, Sq)``, or ``(1, Sq)`` or ``(Sq,)``
        without heads, and ``key_totals`` likewise; of any library and device.
    ax : pair of matplotlib Axes, optional
        Where to draw the entropy and the totals. Default: a new figure.

    Returns
    -------
    array of Axes
        Two: the entropy of each query in nats, a line for each head, below the dotted line of weights that are the same for
        all keys; and the sum of the weights that each key receives. Long sequences are drawn as means of neighbours, as the labels say.

    Raises
    ------
    TypeError
        If it is given what `attention_statistics` does not return.
    ValueError
        If it has several batch items, or `ax` is no pair.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    `attention_statistics` needs memory linear in the lengths, and so does this picture. The exponential of the entropy is the
    number of keys among which the weights would be shared out evenly. A query that may attend ``n`` keys cannot have more than
    ``log(n)``: in causal order the first has 0 whatever the weights, and row ``i``, counted from 0, at most ``log(i + 1)``.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import attention_statistics
    >>> from attention_xp.viz import plot_statistics
    >>> x = np.random.default_rng(0).standard_normal((1, 4, 256, 16))
    >>> entropy, totals = plot_statistics(attention_statistics(x, x, is_causal=True))
    >>> entropy.get_ylabel(), totals.get_xlabel()
    ('entropy (nats)', 'key position')
    """
    if not isinstance(statistics, AttentionStatistics):
        raise TypeError(f"statistics must be what attention_statistics returns, got {type(statistics).__name__}")
    entropy, totals = (_of_heads(name, getattr(statistics, name)) for name in ("entropy", "key_totals"))
    if ax is None:
        ax = new_axes(2, 1, (7.5, 6.0)).ravel()
    elif np.shape(ax) != (2,):
        raise ValueError("ax must be a pair of Axes, one for the entropy and one for the totals of keys")
    above, below = ax
    limit = math.log(totals.shape[1])
    mean = _draw_lines(above, entropy)
    even = above.axhline(limit, color="0.4", linestyle=":", label=f"even over all keys: log {totals.shape[1]}")
    above.set(xlabel=f"query row{mean}", ylabel="entropy (nats)", title="How widely each query attends")
    above.set_ylim(bottom=0.0, top=1.08 * limit or 1.0)
    mean = _draw_lines(below, totals)
    below.set(xlabel=f"key position{mean}", ylabel="sum of weights", title="How much each key receives")
    below.set_ylim(bottom=0.0)
    above.legend(handles=[even], loc="lower right", fontsize="small")
    label_heads(below, len(totals))
    return np.asarray([above, below])


def _of_heads(name: str, array: Any) -> Any:
    """Return a statistic of one batch item, (H, S), as an array of NumPy."""
    values = np.asarray(as_numpy(array), dtype=float)
    batch = values.shape[: -2 if values.ndim > 2 else -1]
    if math.prod(batch) != 1 or 0 in values.shape:
        raise ValueError(
            f"statistics must be of one batch item and of at least one position: expected {name} (1, H, S), (1, S) or (S,), "
            f"got {values.shape}"
        )
    return values.reshape(-1, values.shape[-1])


def _draw_lines(axes: Any, values: Any) -> str:
    """Draw a line for each head, through means of neighbours where there are too many; say so for the label."""
    count = values.shape[1]
    block = math.ceil(count / _POINTS)
    starts = np.arange(0, count, block)
    sizes = np.minimum(starts + block, count) - starts
    means = np.add.reduceat(values, starts, axis=1) / sizes
    marker = "o" if count <= 32 else None
    for i, (line, colour) in enumerate(zip(means, colours_of_heads(len(values)), strict=True)):
        label = f"head {i}" if len(values) > 1 else None
        places = starts + (sizes - 1) / 2
        axes.plot(places, line, color=colour, label=label, linewidth=1.2, marker=marker, markersize=3)
    axes.margins(x=0.01)
    return "" if block == 1 else f" (means of {block})"
