"""Biases as pictures for notebooks, in SVG: curves over the distance, or one matrix."""

import math
from html import escape
from itertools import groupby
from typing import Any

__all__ = ["as_curves", "pictured"]

_WIDTH, _HEIGHT, _MARGIN = 320, 160, 24


def as_curves(values: Any) -> Any | None:
    """Return values (H, L, L) as a function of the distance from query to key, (H, 2 L - 1), or ``None`` if they are none.

    The distances go from ``1 - L`` to ``L - 1``.
    """
    import numpy as np  # noqa: PLC0415  # the import of the package loads no array library

    if not np.array_equal(values[:, 1:, 1:], values[:, :-1, :-1]):
        return None
    return np.concatenate([values[:, :0:-1, 0], values[:, 0]], axis=-1)


def pictured(name: str, values: Any) -> str:
    """Return a picture of the values of a bias, (H, L, L): a curve for each head, or the first head as a matrix."""
    heads, length = values.shape[:2]
    curves = as_curves(values)
    what = f"{heads} heads by k - q" if curves is not None and heads > 1 else "by k - q"
    what = what if curves is not None else f"{length} queries x {length} keys, first batch item and head"
    title = escape(f"{name}: {what}")
    body = _matrix(values[0]) if curves is None else _lines(curves)
    height = _WIDTH if curves is None else _HEIGHT
    return (
        f'<figure style="margin:0"><figcaption>{title}</figcaption><svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'style="background:#fff;outline:1px solid #888;font:11px sans-serif"><title>{title}</title>{body}</svg></figure>'
    )


def _range(values: Any) -> tuple[float, float]:
    """Return the least and the largest finite number, apart from each other."""
    finite = values[abs(values) < math.inf]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return (low, high) if low < high else (low - 1.0, high + 1.0)


def _lines(curves: Any) -> str:
    """Draw a line for each head, from dark to light, between labels of the largest and least value and distance."""
    low, high = _range(curves)
    count = curves.shape[1]
    wide, tall = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    parts = [
        f'<path d="M{_WIDTH / 2} {_MARGIN}V{_HEIGHT - _MARGIN}" stroke="#999" stroke-dasharray="2 2"/>',
        _text(_MARGIN, _MARGIN - 8, "start", f"{high:.3g}"),
        _text(_MARGIN, _HEIGHT - 8, "start", f"{low:.3g}, k - q = {-(count // 2)}"),
        _text(_WIDTH / 2, _HEIGHT - 8, "middle", "0"),
        _text(_WIDTH - _MARGIN, _HEIGHT - 8, "end", str(count // 2)),
    ]
    for i, line in enumerate(curves):
        lightness = 25 + round(45 * i / max(len(curves) - 1, 1))
        points = [
            (_MARGIN + wide * x / max(count - 1, 1), _MARGIN + tall * (high - float(y)) / (high - low))
            for x, y in enumerate(line)
        ]
        # Minus infinity excludes a pair; the line has a gap there.
        runs = [list(run) for is_finite, run in groupby(points, lambda p: math.isfinite(p[1])) if is_finite]
        path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in runs)
        parts.append(f'<path d="{path}" fill="none" stroke="hsl(210 70% {lightness}%)" stroke-width="1.5"/>')
    return "".join(parts)


def _matrix(values: Any) -> str:
    """Draw a matrix, the darker the larger; what is excluded stays empty."""
    low, high = _range(values)
    side = _WIDTH / len(values)
    squares = [
        f'<rect x="{side * x:g}" y="{side * y:g}" width="{side:g}" height="{side:g}" '
        f'fill-opacity="{0.1 + 0.9 * (float(value) - low) / (high - low):.3g}"/>'
        for y, line in enumerate(values)
        for x, value in enumerate(line)
        if math.isfinite(value)
    ]
    return f'<g fill="#1f4e79" shape-rendering="crispEdges">{"".join(squares)}</g>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#333">{text}</text>'
