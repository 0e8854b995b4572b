"""What `plot_positions` draws, by matplotlib's artists."""

import numpy as np
import pytest

from attention_xp import alibi_slopes, positional_encoding
from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from attention_xp.viz import plot_positions
from tests._backends import to_numpy
from tests.biases._cases import CASES


class OfKeys(Bias):
    """Depends on the key, and excludes one."""

    def values(self, region):
        keys = region.floating(region.kv_idx)
        return region.xp.where(region.kv_idx == 1, -np.inf, keys)


def test_an_encoding(make):
    encoding = make(positional_encoding(10, 7))
    axes = plot_positions(encoding)
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), to_numpy(encoding))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dimension", "position")
    assert axes.figure.axes[1].get_ylabel() == "value added to the input"


@pytest.mark.parametrize("name", ["alibi", "one slope", "alibi of items", "buckets", "buckets before"])
def test_a_bias_by_distance(make, name):
    case = CASES[name]
    axes = plot_positions(case.build(make), length=20)
    lines = [line for line in axes.lines if len(line.get_xdata()) == 39]
    assert len(lines) == case.heads
    for h, line in enumerate(lines):
        for distance, value in zip(*line.get_data(), strict=True):
            q, k = (0, distance) if distance >= 0 else (-distance, 0)
            assert value == pytest.approx(case.says(0, h, int(q), int(k)), rel=1e-5)
    assert axes.get_xlabel() == "distance from query to key, k - q"
    if case.heads > 1:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"head {h}" for h in range(case.heads)]


def test_many_heads_have_a_colour_bar():
    axes = plot_positions(AlibiBias(alibi_slopes(12)))
    assert axes.get_legend() is None
    assert axes.figure.axes[1].get_ylabel() == "head"
    colours = {tuple(line.get_color()) for line in axes.lines if len(line.get_xdata()) > 2}
    assert len(colours) == 12


def test_any_other_bias_is_a_matrix():
    axes = plot_positions(OfKeys(), length=4)
    drawn = axes.images[0].get_array()
    np.testing.assert_array_equal(drawn.mask, np.tile([False, True, False, False], (4, 1)))
    np.testing.assert_array_equal(drawn.compressed(), np.tile([0.0, 2.0, 3.0], 4))
    assert "first batch item and head" in axes.get_title()


@pytest.mark.parametrize(
    ("given", "options", "error", "text"),
    [
        ("alibi", {}, TypeError, "must be a floating array or a Bias, got str"),
        (np.eye(3, dtype=int), {}, TypeError, "encoding must be a floating array"),
        (np.ones(3), {}, ValueError, r"encoding \(S, d_model\), got encoding \(3,\)"),
        (np.ones((0, 3)), {}, ValueError, "must not be empty"),
        (RelativePositionBias(np.ones(4)), {"length": 0}, ValueError, "length must be at least 1"),
    ],
)
def test_errors(given, options, error, text):
    with pytest.raises(error, match=text):
        plot_positions(given, **options)
