"""What `plot_attention` draws, by matplotlib's artists."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from attention_xp.viz import plot_attention
from tests._backends import to_numpy
from tests.viz._weights import tokens_of, weights_of


def drawn(axes):
    """The numbers of the picture in some Axes."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (1, 3, 4, 5)], ids=str)
def test_the_mean_of_any_library(make, library, shape):
    dtypes = set(library.dtypes()) & {"bfloat16", "float16", "float32"}
    for dtype in dtypes:
        weights = make(weights_of(*shape), dtype)
        expected = to_numpy(weights).astype(np.float32).reshape(-1, 4, 5).mean(axis=0)
        np.testing.assert_allclose(drawn(plot_attention(weights)), expected, rtol=1e-6)


@pytest.mark.backends("torch")
def test_weights_that_want_gradients(make):
    assert drawn(plot_attention(make(np.eye(3)).requires_grad_())).sum() == 3.0


def test_one_head():
    weights = weights_of(1, 3, 4, 4)
    axes = plot_attention(weights, ["a", "b", "c", "d"], head=np.int64(1))
    np.testing.assert_allclose(drawn(axes), weights[0, 1], rtol=1e-6)
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("head 1", "key", "query")
    assert labels(axes.xaxis) == labels(axes.yaxis) == ["a", "b", "c", "d"]
    (bar,) = [other for other in axes.figure.axes if other is not axes]
    assert bar.get_ylabel() == "attention weight (square-root colours)"
    assert axes.images[0].get_cmap().name == "viridis"


@pytest.mark.parametrize(("head", "heads"), [("all", [0, 1, 2, 3, 4]), ([3, 1], [3, 1]), (range(1, 4), [1, 2, 3])])
def test_a_grid_of_heads(head, heads):
    weights = weights_of(1, 5, 4, 4)
    grid = plot_attention(weights, tokens_of(4), head=head)
    assert [axes.get_title() for axes in grid] == [f"head {i}" for i in heads]
    for axes, i in zip(grid, heads, strict=True):
        np.testing.assert_allclose(drawn(axes), weights[0, i], rtol=1e-6)
        assert axes.images[0].get_clim() == (0.0, pytest.approx(weights[0, heads].max()))
    assert len(grid[0].figure.axes) == len(heads) + 1  # and one colour bar


@pytest.mark.parametrize("head", [None, "all"])
def test_colours_and_the_largest_weight_can_be_chosen(head):
    weights = weights_of(1, 2, 4, 4)
    for vmax, end in ((1.0, "neither"), (0.25, "max")):
        axes = np.ravel(plot_attention(weights, head=head, vmax=vmax, cmap="Greys"))[-1]
        (image,) = axes.images
        assert (image.get_clim(), image.get_cmap().name, image.colorbar.extend) == ((0.0, vmax), "Greys", end)
        quarter = image.norm(vmax / 4)
        assert quarter == pytest.approx(0.5)  # colours are a square root


@pytest.mark.parametrize("head", [None, "all"])
def test_numbers_stand_in_their_cells(head):
    weights = weights_of(1, 2, 5, 5)
    axes = np.ravel(plot_attention(weights, head=head, numbers=True))[0]
    axes.figure.canvas.draw()
    shown = weights[0].mean(axis=0) if head is None else weights[0, 0]
    assert [text.get_text() for text in axes.texts] == [f"{weight:.2f}" for weight in shown.ravel()]
    cell = axes.get_window_extent().width / 5
    for text, (row, column) in zip(axes.texts, np.ndindex(5, 5), strict=True):
        assert text.get_position() == (column, row)
        assert text.get_window_extent().width < cell
        dark = axes.images[0].to_rgba(shown[row, column])[:3] @ np.asarray([0.2126, 0.7152, 0.0722]) < 0.5
        assert text.get_color() == ("white" if dark else "black")


@pytest.mark.parametrize("count", [1, 10, 100])
@pytest.mark.parametrize("head", [None, "all"])
def test_labels_are_legible(count, head):
    axes = np.ravel(plot_attention(weights_of(1, 2, count, count), tokens_of(count), head=head))[0]
    axes.figure.canvas.draw()
    ticks, texts = axes.get_yticks(), axes.get_yticklabels()
    size = texts[0].get_fontsize()
    assert size >= 5.5
    heights = [text.get_window_extent().height for text in texts]
    gaps = np.diff([text.get_window_extent().y0 for text in texts])
    assert all(abs(gaps) >= 0.8 * min(heights, default=0))  # none covers another
    assert [text.get_text() for text in texts] == [tokens_of(count)[int(i)] for i in ticks]


def test_every_token_has_a_label_up_to_a_hundred():
    axes = plot_attention(weights_of(100, 100), tokens_of(100))
    assert labels(axes.xaxis) == labels(axes.yaxis) == tokens_of(100)


def test_labels_fit_the_axes_that_are_given():
    axes = plt.subplots(figsize=(3, 3))[1]
    assert plot_attention(weights_of(100, 100), tokens_of(100), ax=axes) is axes
    assert 10 <= len(axes.get_yticks()) < 100


@pytest.mark.parametrize("head", [None, "all"])
def test_tokens_are_no_markup(head):
    tokens = ["$x^2$", "\n\x1b[31m", " the", "$\\frac{$", ""]
    axes = np.ravel(plot_attention(weights_of(1, 3, 5, 5), tokens, head=head))[0]
    axes.figure.canvas.draw()  # which would fail on mathematics that is none
    assert labels(axes.yaxis) == ["$x^2$", "\\n\\x1b[31m", "␣the", "$\\frac{$", "(empty)"]
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())


def test_tokens_of_keys_and_queries():
    axes = plot_attention(weights_of(2, 3), ["p", "q"], ["a", "b", "c"])
    assert (labels(axes.yaxis), labels(axes.xaxis)) == (["p", "q"], ["a", "b", "c"])
    axes = plot_attention(weights_of(2, 3), ["p", "q"])
    assert (labels(axes.yaxis), labels(axes.xaxis)) == (["p", "q"], ["0", "1", "2"])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([[1.0]],), {}, TypeError, "weights must be an array, got list"),
        ((np.eye(3, dtype=int),), {}, TypeError, "weights must be a floating array"),
        ((np.ones(3),), {}, ValueError, r"2 to 4 axes.*got weights \(3,\)"),
        ((np.ones((0, 3)),), {}, ValueError, "none of length 0"),
        ((np.ones((2, 4, 3, 3)),), {}, ValueError, r"2 batch items.*weights\[i:i \+ 1\] has those of one$"),
        ((np.ones((4, 3, 3)),), {}, ValueError, r"4 batch items.*weights\[None\] has heads$"),
        ((-np.eye(3),), {}, ValueError, "finite and not negative"),
        ((np.full((3, 3), np.nan),), {}, ValueError, "finite and not negative"),
        ((np.eye(3), "abc"), {}, TypeError, "query_tokens must be a sequence of str, got str"),
        ((np.eye(3), [1, 2, 3]), {}, TypeError, r"got int as query_tokens\[0\]"),
        ((np.eye(3), ["a", "b"]), {}, ValueError, "one for each of the 3 queries, got 2"),
        ((np.eye(3), None, ["a"]), {}, ValueError, "key_tokens must have one for each of the 3 keys"),
        ((np.eye(3),), {"head": 1}, ValueError, "head must be from 0 to 0, got 1"),
        ((np.eye(3),), {"head": "mean"}, ValueError, "'all', got 'mean'"),
        ((np.eye(3),), {"head": 1.0}, TypeError, "head must be an int.*got float"),
        ((np.eye(3),), {"head": []}, ValueError, "at least one head"),
        ((np.eye(3),), {"head": "all", "ax": object()}, ValueError, "ax can be given for one picture"),
        ((np.eye(3),), {"vmax": 0}, ValueError, "vmax must be positive, got 0"),
        ((np.eye(3),), {"cmap": "rosy"}, ValueError, "rosy"),
        ((np.eye(3),), {"numbers": 2}, TypeError, "numbers must be a bool"),
        ((np.eye(65),), {"numbers": True}, ValueError, "up to 64 queries and keys, got 65"),
    ],
)
def test_errors(arguments, options, error, text):
    with pytest.raises(error, match=text):
        plot_attention(*arguments, **options)
