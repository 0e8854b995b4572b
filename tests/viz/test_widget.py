"""The head view as a widget, on Python's side."""

import sys

import numpy as np
import pytest

from attention_xp.viz import head_view
from attention_xp.viz._page import static
from attention_xp.viz._widget import _kind
from tests.viz._page import weights_in
from tests.viz._weights import tokens_of, weights_of


@pytest.fixture
def view():
    return head_view([weights_of(1, 3, 5, 5, seed=i) for i in range(2)], tokens_of(5), layer=1, head=2)


def test_the_widget_holds_what_the_page_does(view, tmp_path):
    pytest.importorskip("anywidget")
    widget = view.widget
    view.save(tmp_path / "view.html")
    data, weights = weights_in((tmp_path / "view.html").read_text("utf-8"))
    codes = np.frombuffer(widget._codes, np.uint8).reshape(weights.shape)
    np.testing.assert_allclose(widget._about["scale"] * (codes / 255) ** 2, weights, rtol=1e-12)
    assert widget._about["queries"] == data["about"]["queries"]
    assert (widget._esm, widget._css) == (static("head_view.js") + static("widget.js"), static("head_view.css"))
    assert "application/vnd.jupyter.widget-view+json" in view._repr_mimebundle_()[0]


def test_what_is_chosen_in_the_widget_is_known_and_saved(view, tmp_path):
    traitlets = pytest.importorskip("traitlets")
    pytest.importorskip("anywidget")
    view.widget.layer, view.widget.head = 0, 1
    assert (view.layer, view.head) == (0, 1)
    view.save(tmp_path / "view.html")
    data, _ = weights_in((tmp_path / "view.html").read_text("utf-8"))
    assert (data["layer"], data["head"]) == (0, 1)
    with pytest.raises(traitlets.TraitError):
        view.widget.head = 3


def test_notebooks_show_a_frame_without_anywidget(view, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    _kind.cache_clear()
    assert view._repr_mimebundle_() == {}
    assert "<iframe" in view._repr_html_()
    with pytest.raises(ImportError):
        view.widget  # noqa: B018
