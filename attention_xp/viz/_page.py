"""The head view as data and as one HTML file: tokens are data in it, and nothing is loaded from anywhere."""

import base64
import hashlib
import json
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from attention_xp.viz._tokens import shown

__all__ = ["Packed", "framed", "packed", "page_of", "static"]

_THUMB = 24  # pixels of a longer side of a thumbnail
_ROWS = {24: 28, 60: 22}  # pixels of a token, where there are up to so many
_LOWEST_ROW = 18
_CELL, _MOST_OF_CELLS = 28, 420  # pixels of a cell of the picker, and of all at most
_TEXTS, _HEADING = 116, 68  # pixels of the lines above and below the tokens; of the title and the margins
_MOST_OF_TOKENS = 520  # pixels in a frame, where they scroll
_TITLE = "Attention, head by head"


class Packed(NamedTuple):
    """The weights of all layers and heads as the browser takes them."""

    about: dict[str, Any]  # shape, tokens and sizes
    codes: Any  # (L, H, Sq, Sk) uint8: 255 sqrt(weight / scale)
    thumbs: Any  # (L, H, rows, columns) uint8: the largest codes of blocks


def packed(layers: list[Any], queries: list[str], keys: list[str]) -> Packed:
    """Pack the weights of each layer, (H, Sq, Sk).

    A weight takes one byte. Codes are square roots, so that they are densest where most weights are; a weight is off by
    0.4 % of the largest one at most, and by less the smaller it is.
    """
    scale = max(float(layer.max()) for layer in layers) or 1.0
    codes = np.stack([np.rint(255.0 * np.sqrt(layer / scale)).astype(np.uint8) for layer in layers])
    thumbs = _shrunk(_shrunk(codes, -1), -2)
    about = {
        "shape": codes.shape,
        "queries": [shown(token) for token in queries],
        "keys": [shown(token) for token in keys],
        "scale": scale,
        "row": next((row for most, row in _ROWS.items() if max(codes.shape[-2:]) <= most), _LOWEST_ROW),
        "thumbRows": thumbs.shape[-2],
        "thumbColumns": thumbs.shape[-1],
    }
    return Packed(about, codes, thumbs)


def _shrunk(codes: Any, axis: int) -> Any:
    """Return the largest codes of equal blocks along an axis of a longer side."""
    block = -(-max(codes.shape[-2:]) // _THUMB)
    return np.maximum.reduceat(codes, np.arange(0, codes.shape[axis], block), axis=axis)


@cache
def static(name: str) -> str:
    """Return a file of the browser's part, which the widget and the page share."""
    return Path(__file__).with_name("static").joinpath(name).read_text("utf-8")


def page_of(view: Packed, layer: int, head: int) -> str:
    """Return the HTML file: style, data and program in one, whose policy lets nothing else run and nothing load."""
    codes = view.codes.reshape(-1, *view.codes.shape[2:])
    data = {
        "about": view.about,
        "codes": [_text(each) for each in codes],
        "thumbs": _text(view.thumbs),
        "layer": layer,
        "head": head,
    }
    script, style = static("head_view.js") + static("page.js"), static("head_view.css")
    return Template(static("page.html")).substitute(
        title=escape(_TITLE),
        script=script,
        script_hash=_hash(script),
        style=style,
        style_hash=_hash(style),
        # No token ends the element, whatever it holds: all that could begin a tag is escaped.
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def framed(view: Packed, layer: int, head: int) -> str:
    """Return the page in a frame that keeps it apart from the notebook around it, and is as high as what it shows."""
    beside, below, width = _frame(view)
    # Where it is too narrow for both, the tokens stand below the picker: the product is huge there, and negative elsewhere.
    height = f"height:{below}px;height:clamp({beside}px,({width}px - 100cqi)*999,{below}px)"
    return (
        f'<div style="container-type:inline-size"><iframe title="{escape(_TITLE)}" sandbox="allow-scripts" '
        f'srcdoc="{escape(page_of(view, layer, head))}" style="width:100%;{height};border:0"></iframe></div>'
    )


def _frame(view: Packed) -> tuple[int, int, int]:
    """Return the height with the picker beside the tokens, that with it above them, and the width that the first takes."""
    layers, heads, Sq, Sk = view.codes.shape
    body = min(max(Sq, Sk) * view.about["row"] + 18, _MOST_OF_TOKENS) + _TEXTS
    picker = min((layers + 1) * _CELL + 6, _MOST_OF_CELLS) + 24
    width = min((heads + 1) * _CELL + 6, _MOST_OF_CELLS) + 28 + 420 + 24
    return _HEADING + max(body, picker), _HEADING + body + 12 + picker, width


def _text(codes: Any) -> str:
    return base64.b64encode(codes.tobytes()).decode("ascii")


def _hash(text: str) -> str:
    """Return the name of a script or style in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
