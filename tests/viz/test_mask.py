"""What `plot_mask` draws, by matplotlib's artists."""

import numpy as np
import pytest
from matplotlib.patches import Patch

from attention_xp.masks import BlockMask, CausalMask, FunctionMask, LengthMask, SegmentMask, WindowMask
from attention_xp.viz import plot_mask

SKIPPED, MIXED, WHOLE = range(3)


def tiles_of(axes):
    """The kinds of the tiles, and their edges."""
    (mesh,) = axes.collections
    corners = mesh.get_coordinates()
    return np.asarray(mesh.get_array()), corners[0, :, 0], corners[:, 0, 1]


def pairs_of(axes):
    """How much of each pixel is allowed."""
    (image,) = axes.images
    alpha = np.asarray(image.get_array())[..., 3]
    return alpha / (alpha.max() or 1.0)


def counts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


CASES = {
    "causal": (CausalMask(), 12, 12, {}),
    "further on": (CausalMask() & WindowMask(4, 0), 6, 20, {"query_offset": 9}),
    "blocks of heads": (BlockMask(np.eye(3, dtype=bool)[None].repeat(2, axis=0), 4), 12, 12, {}),
    "lengths": (LengthMask(np.asarray([5, 9])), 10, 10, {}),
    "function": (FunctionMask(lambda b, h, q, k: (q - k) % 3 == 0), 9, 9, {}),
    "one pair": (CausalMask(), 1, 1, {}),
}


def test_a_part_further_on_is_that_of_the_whole():
    mask = SegmentMask(np.arange(900) // 70) & WindowMask(9, 2)
    whole, by_block = mask.to_array(900, 900)[300:360, 310:380], mask.to_array(900, 900)[100:, 150:]
    axes = plot_mask(mask, 60, 70, query_offset=300, key_offset=310, tile=(20, 10))
    np.testing.assert_array_equal(pairs_of(axes) > 0, whole)
    kinds, x, y = tiles_of(axes)
    assert (x[0], x[-1], y[0], y[-1]) == (309.5, 379.5, 299.5, 359.5)
    assert tuple(axes.images[0].get_extent()) == (309.5, 379.5, 359.5, 299.5)
    np.testing.assert_array_equal(kinds > SKIPPED, whole.reshape(3, 20, 7, 10).any(axis=(1, 3)))
    assert f"{whole.mean():.2%} of the pairs" in axes.get_title()

    axes = plot_mask(mask, 800, 750, query_offset=100, key_offset=150)  # by shares
    assert f"{by_block.mean():.2%} of the pairs" in axes.get_title()
    first = np.asarray(axes.images[0].get_array())[..., 3] > 0
    rows, keys = (-(-size // 128) for size in (800, 750))
    there = [[by_block[r : r + rows, k : k + keys].any() for k in range(0, 750, keys)] for r in range(0, 800, rows)]
    np.testing.assert_array_equal(first, there)


@pytest.mark.parametrize("name", CASES)
def test_pairs_and_tiles(name):
    mask, Sq, Sk, options = CASES[name]
    offset = options.get("query_offset", 0)
    axes = plot_mask(mask, Sq, Sk, tile=(4, 3), **options)
    allowed = mask.to_array(Sq, Sk, offset).reshape(-1, Sq, Sk)[0]
    np.testing.assert_array_equal(pairs_of(axes) > 0, allowed)
    kinds, x, y = tiles_of(axes)
    np.testing.assert_array_equal(x, [*np.arange(0, Sk, 3) - 0.5, Sk - 0.5])
    np.testing.assert_array_equal(y, [*(np.arange(0, Sq, 4) + offset - 0.5), Sq + offset - 0.5])
    for i, j in np.ndindex(kinds.shape):
        pairs = allowed[4 * i : 4 * i + 4, 3 * j : 3 * j + 3]
        exact = WHOLE if pairs.all() else MIXED if pairs.any() else SKIPPED
        assert kinds[i, j] in ((MIXED,) if name == "function" else (exact,))
    names = ["skipped", "mixed", "whole"]
    expected = [f"{n} {'tile' if n == 1 else 'tiles'} {names[k]}" for k in range(3) if (n := (kinds == k).sum()) >= 0]
    assert counts(axes) == ["allowed pair", *expected]
    assert axes.get_title().startswith(repr(mask))
    assert f"{mask.density(Sq, Sk, offset):.2%} of the pairs" in axes.get_title()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key position", "query position")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first query is above


def test_a_long_sequence_is_drawn_by_shares():
    mask = CausalMask() & WindowMask(999, 0)
    axes = plot_mask(mask, 8192, 8192)
    shares = pairs_of(axes)
    assert shares.shape == (128, 128)
    expected = mask.to_array(8192, 8192).reshape(128, 64, 128, 64).mean(axis=(1, 3))
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    kinds, *_ = tiles_of(axes)
    assert kinds.shape == (16, 16)
    assert set(kinds.ravel()) == {SKIPPED, MIXED}


@pytest.mark.parametrize("sizes", [(10, 10), (100, 100), (2, 700)], ids=str)
def test_axes_hold_the_whole_mask(sizes):
    axes = plot_mask(CausalMask(), *sizes, query_offset=3)
    axes.figure.canvas.draw()
    assert axes.get_xlim() == (-0.5, sizes[1] - 0.5)
    assert axes.get_ylim() == (sizes[0] + 2.5, 2.5)


def test_an_array_of_any_library(make):
    keep = np.tril(np.ones((5, 7), bool))
    np.testing.assert_array_equal(pairs_of(plot_mask(make(keep), 5, 7)) > 0, keep)


def test_the_legend_has_the_colours_of_allowed_pairs():
    axes = plot_mask(CausalMask(), 8, 8, tile=(4, 4))
    seen = {tuple(patch.get_facecolor()[:3]) for patch in axes.get_legend().findobj(Patch)}
    kinds = axes.collections[0].get_cmap()([MIXED, WHOLE])[:, :3]
    shade = np.asarray(axes.images[0].get_array())[7, 0, 3]
    assert {tuple(np.round((1 - shade) * kind, 6)) for kind in kinds} <= {tuple(np.round(colour, 6)) for colour in seen}


def test_lightness_alone_tells_kinds_apart():
    axes = plot_mask(CausalMask(), 8, 8)
    colours = axes.collections[0].get_cmap()(np.arange(3))[:, :3]
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert min(abs(np.diff(sorted(lightness)))) > 0.1


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((CausalMask(), 0, 3), {}, ValueError, "Sq must be at least 1, got 0"),
        ((CausalMask(), 3, 3.0), {}, TypeError, "Sk must be an int"),
        ((CausalMask(), 3, 3), {"tile": (0, 1)}, ValueError, "tile must be positive"),
        ((CausalMask(), 3, 3), {"query_offset": 0.5}, TypeError, "query_offset must be an int"),
        ((CausalMask(), 3, 3), {"key_offset": "1"}, TypeError, "key_offset must be an int"),
        ((np.eye(3), 3, 3), {}, TypeError, "array must be boolean"),
        (("causal", 3, 3), {}, TypeError, "array must be an array, got str"),
    ],
)
def test_errors(arguments, options, error, text):
    with pytest.raises(error, match=text):
        plot_mask(*arguments, **options)
