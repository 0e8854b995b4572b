"""The head view as a widget; anywidget is imported when one is made."""

from functools import cache
from typing import Any

from attention_xp.viz._page import Packed, static

__all__ = ["widget_of"]


def widget_of(view: Packed, layer: int, head: int) -> Any:
    """Return a widget that shows a view; its traits `layer` and `head` say, and set, what is seen."""
    layers, heads = view.about["shape"][:2]
    return _kind(layers, heads)(
        _about=view.about, _codes=view.codes.tobytes(), _thumbs=view.thumbs.tobytes(), layer=layer, head=head
    )


@cache
def _kind(layers: int, heads: int) -> Any:
    """Return the class of the widgets of so many layers and heads."""
    import anywidget  # noqa: PLC0415
    import traitlets  # noqa: PLC0415

    class HeadViewWidget(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = static("head_view.js") + static("widget.js")
        _css = static("head_view.css")
        _about = traitlets.Dict().tag(sync=True)
        _codes = traitlets.Bytes().tag(sync=True)
        _thumbs = traitlets.Bytes().tag(sync=True)
        layer = traitlets.Int(0, min=0, max=layers - 1).tag(sync=True)
        head = traitlets.Int(0, min=0, max=heads - 1).tag(sync=True)

    return HeadViewWidget
