"""All layers and heads of a model to look through, in notebooks and in the browser."""

from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from attention_xp._public_types import Array
from attention_xp.viz._page import Packed, framed, packed, page_of
from attention_xp.viz._tokens import check_tokens
from attention_xp.viz._weights import check_index, weights_of_layers

__all__ = ["HeadView", "head_view"]


class HeadView:
    """What `head_view` returns: notebooks show it, `save` writes it to a file.

    Attributes
    ----------
    layer, head : int
        What the widget shows, also after someone has chosen another head in it.
    widget : anywidget.AnyWidget
        The widget, for layouts of ipywidgets; it is made when it is first asked for.
    """

    def __init__(self, view: Packed, layer: int, head: int) -> None:
        self._view, self._start = view, (layer, head)

    @property
    def layer(self) -> int:
        return self._now[0]

    @property
    def head(self) -> int:
        return self._now[1]

    @property
    def _now(self) -> tuple[int, int]:
        widget = self.__dict__.get("widget")
        return self._start if widget is None else (widget.layer, widget.head)

    @cached_property
    def widget(self) -> Any:
        from attention_xp.viz._widget import widget_of  # noqa: PLC0415  # needs anywidget

        return widget_of(self._view, *self._start)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one HTML file that needs nothing else, neither a server nor the network.

        Parameters
        ----------
        path : str or path
            Where to write; a file that is there is replaced.
        """
        Path(path).write_text(page_of(self._view, *self._now), "utf-8")

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks without the widget, and for what is made of notebooks."""
        return framed(self._view, *self._now)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return the widget for notebooks, or nothing where anywidget is not installed: they then show the frame."""
        try:
            widget = self.widget
        except ImportError:
            return {}
        return widget._repr_mimebundle_(**options)

    def __repr__(self) -> str:
        L, H, Sq, Sk = self._view.codes.shape
        return f"HeadView({L} layers, {H} heads, {Sq} queries, {Sk} keys)"


def head_view(
    weights: Array | Sequence[Array],
    tokens: Sequence[str] | tuple[Sequence[str], Sequence[str]],
    *,
    layer: int | None = None,
    head: int | None = None,
) -> HeadView:
    """Show the attention of all layers and heads: lines between the tokens, thumbnails to choose a head from.

    Parameters
    ----------
    weights : array, or sequence of array
        The weights of one layer, or a list or tuple of those of each layer, all of one shape: ``(1, H, Sq, Sk)``,
        ``(1, Sq, Sk)`` or ``(Sq, Sk)``, as `scaled_dot_product_attention` returns them. They may be of any library and on
        any device; ``attentions`` of a model of transformers goes in as it is.
    tokens : sequence of str, or pair of them
        One for each position where ``Sq == Sk``; otherwise a pair, the tokens of the queries and those of the keys.
    layer, head : int, optional
        What to show first. Default: the first.

    Returns
    -------
    HeadView
        A widget in notebooks, by anywidget, or a frame with the same view where that is not installed. Its `save`
        writes one HTML file that needs nothing else.

    Raises
    ------
    TypeError
        If weights are no floating arrays, tokens are no str, or `layer` or `head` is no int.
    ValueError
        If weights have several batch items, differ in shape, or are negative or not finite; if there is not one token
        for each position; or if there is no such layer or head.

    Notes
    -----
    Point at a token, or choose one by click or by the arrow keys, to see its weights alone, with their numbers; ``Escape``
    brings back all lines, of which the 2,500 largest weights have one. Thumbnails are chosen by click or arrow keys, too.
    Characters of tokens that cannot be seen are shown as Python's strings are written, and markup is shown as it is: nothing
    in a token is ever run. The file holds a byte for each weight, its square root in 256 steps, so that numbers are right to about
    two digits.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import multi_head_self_attention
    >>> from attention_xp.viz import head_view
    >>> x = np.random.default_rng(0).standard_normal((1, 3, 8))
    >>> layers = [multi_head_self_attention(x, num_heads=4, d_model=8)[1] for _ in range(2)]
    >>> view = head_view(layers, ["the", "cat", "sat"], head=3)
    >>> view
    HeadView(2 layers, 4 heads, 3 queries, 3 keys)
    """
    layers = weights_of_layers(weights)
    H, Sq, Sk = layers[0].shape
    queries, keys = _tokens(tokens, Sq, Sk)
    layer = check_index("layer", 0 if layer is None else layer, len(layers))
    head = check_index("head", 0 if head is None else head, H)
    return HeadView(packed(layers, queries, keys), layer, head)


def _tokens(tokens: Any, Sq: int, Sk: int) -> tuple[list[str], list[str]]:
    """Return the tokens of queries and keys."""
    if isinstance(tokens, list | tuple) and len(tokens) == 2 and all(isinstance(side, list | tuple) for side in tokens):
        return (
            check_tokens("tokens[0]", tokens[0], Sq, "queries"),
            check_tokens("tokens[1]", tokens[1], Sk, "keys"),
        )
    if Sq != Sk:
        raise ValueError(
            f"tokens must be a pair, those of the {Sq} queries and those of the {Sk} keys, where their numbers differ"
        )
    both = check_tokens("tokens", tokens, Sq, "positions")
    return both, both
