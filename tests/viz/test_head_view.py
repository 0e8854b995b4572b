"""What a head view takes, and what its page holds; a browser runs it in test_browser.py."""

import base64
import hashlib
import re

import numpy as np
import pytest

from attention_xp.viz import head_view
from attention_xp.viz._page import packed
from tests._backends import to_numpy
from tests.viz._page import parsed, weights_in
from tests.viz._weights import tokens_of, weights_of


def page_of(view, tmp_path):
    """The text of the file that a view writes."""
    view.save(tmp_path / "view.html")
    return (tmp_path / "view.html").read_text("utf-8")


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (1, 3, 6, 6), (1, 3, 4, 6)], ids=str)
def test_the_page_holds_the_weights(make, library, tmp_path, shape):
    layers = [make(weights_of(*shape, seed=i)) for i in range(2)]
    tokens = tokens_of(6) if shape[-2] == 6 else (tokens_of(4), tokens_of(6))
    view = head_view(layers, tokens, layer=1)
    assert (view.layer, view.head) == (1, 0)
    data, weights = weights_in(page_of(view, tmp_path))
    expected = np.stack([to_numpy(w).reshape(-1, *shape[-2:]) for w in layers])
    np.testing.assert_allclose(weights, expected, atol=0.004)
    np.testing.assert_allclose(np.sqrt(weights), np.sqrt(expected), atol=0.5 / 255 + 1e-6)
    assert (data["layer"], data["head"]) == (1, 0)
    assert data["about"]["keys"] == tokens_of(6)
    assert repr(view) == f"HeadView(2 layers, {expected.shape[1]} heads, {shape[-2]} queries, 6 keys)"


def test_weights_after_dropout_may_be_above_one(tmp_path):
    weights = np.asarray([[2.5, 0.0], [0.625, 0.625]])
    _, found = weights_in(page_of(head_view(weights, ["a", "b"]), tmp_path))
    np.testing.assert_allclose(found[0, 0], weights, atol=0.01)


@pytest.mark.parametrize(("Sq", "Sk", "size"), [(5, 7, (5, 7)), (100, 50, (20, 10)), (25, 1, (13, 1))])
def test_thumbnails_keep_the_largest_weights(Sq, Sk, size):
    weights = weights_of(2, Sq, Sk)
    view = packed([weights], tokens_of(Sq), tokens_of(Sk))
    assert view.thumbs.shape == (1, 2, *size)
    np.testing.assert_array_equal(view.thumbs.max(axis=(2, 3)), view.codes.max(axis=(2, 3)))
    block = -(-max(Sq, Sk) // 24)
    np.testing.assert_array_equal(view.thumbs[0, 1, 0, 0], view.codes[0, 1, :block, :block].max())


HOSTILE = ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "'\"`${1}", "\u2028", "\ud800", "&lt;", "$data"]


def test_nothing_of_a_token_is_markup(tmp_path):
    page = page_of(head_view(weights_of(8, 8), HOSTILE), tmp_path)
    plain = page_of(head_view(weights_of(8, 8), tokens_of(8)), tmp_path)
    assert parsed(page)[0] == parsed(plain)[0]  # the same tags
    shown = weights_in(page)[0]["about"]["queries"]
    assert shown == [*HOSTILE[:4], r"\u2028", r"\ud800", *HOSTILE[6:]]
    frame = head_view(weights_of(8, 8), HOSTILE)._repr_html_()
    _, (tag, attributes) = parsed(frame)[0]
    assert (tag, attributes["sandbox"], attributes["srcdoc"]) == ("iframe", "allow-scripts", page)


def test_the_page_needs_nothing_else(tmp_path):
    page = page_of(head_view(np.eye(2), ["a", "b"]), tmp_path)
    tags, texts = parsed(page)
    assert not [name for _, attributes in tags for name in attributes if name in ("src", "href", "srcset")]
    assert not re.findall(r"https?:|//cdn|@import|url\(|import\(", page)
    (policy,) = [a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    for kind, name in (("module", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(texts[kind].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


@pytest.mark.parametrize(
    ("weights", "tokens", "options", "error", "text"),
    [
        ("weights", ["a"], {}, TypeError, "weights must be an array, got str"),
        ([], ["a"], {}, ValueError, "at least one layer"),
        ([np.eye(2), [[1.0]]], ["a", "b"], {}, TypeError, r"weights\[1\] must be an array"),
        ([np.eye(2), np.eye(3)], ["a", "b"], {}, ValueError, r"one shape.*\(1, 2, 2\), got weights\[1\] \(1, 3, 3\)"),
        (
            np.ones((6, 12, 2, 2)),
            ["a", "b"],
            {},
            ValueError,
            r"6 batch items.*; if these are layers, give list\(weights\[:, None\]\)$",
        ),
        (np.eye(2), "ab", {}, TypeError, "tokens must be a sequence of str, got str"),
        (np.eye(2), [1, 2], {}, TypeError, r"got int as tokens\[0\]"),
        (np.eye(2), ["a"], {}, ValueError, "one for each of the 2 positions, got 1"),
        (np.ones((1, 2)), ["a", "b"], {}, ValueError, "a pair, those of the 1 queries and those of the 2 keys"),
        (np.ones((1, 2)), (["a"], ["b"]), {}, ValueError, r"tokens\[1\] must have one for each of the 2 keys"),
        (np.eye(2), ["a", "b"], {"layer": 1}, ValueError, "layer must be from 0 to 0, got 1"),
        (np.eye(2), ["a", "b"], {"head": -1}, ValueError, "head must be from 0 to 0, got -1"),
        (np.eye(2), ["a", "b"], {"head": "all"}, TypeError, "head must be an int"),
    ],
)
def test_errors(weights, tokens, options, error, text):
    with pytest.raises(error, match=text):
        head_view(weights, tokens, **options)
