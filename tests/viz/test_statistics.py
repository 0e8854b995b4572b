"""What `plot_statistics` draws, by matplotlib's artists."""

import math

import numpy as np
import pytest
from matplotlib import pyplot as plt

from attention_xp import attention_statistics
from attention_xp.viz import plot_statistics
from tests._backends import to_numpy
from tests._inputs import normal


def lines_of(axes):
    """The lines of the heads."""
    return [np.asarray(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "-"]


@pytest.mark.parametrize("shape", [(12, 8), (1, 12, 8), (1, 3, 12, 8)], ids=str)
def test_a_line_for_each_head(make, shape):
    x = make(normal(*shape))
    statistics = attention_statistics(x, x, is_causal=True)
    above, below = plot_statistics(statistics)
    for axes, array in ((above, statistics.entropy), (below, statistics.key_totals)):
        expected = to_numpy(array).reshape(-1, 12)
        np.testing.assert_allclose(lines_of(axes), expected, rtol=1e-6)
        assert axes.get_ylim()[0] == 0.0
    (even,) = [line for line in above.lines if line.get_linestyle() == ":"]
    assert set(even.get_ydata()) == {math.log(12)}
    assert (above.get_xlabel(), above.get_ylabel()) == ("query row", "entropy (nats)")
    assert (below.get_xlabel(), below.get_ylabel()) == ("key position", "sum of weights")


def test_a_long_sequence_is_drawn_by_means():
    x = normal(1, 2, 1000, 4)
    statistics = attention_statistics(x, x)
    above, below = plot_statistics(statistics)
    expected = statistics.entropy[0].reshape(2, 250, 4).mean(axis=-1)
    np.testing.assert_allclose(lines_of(above), expected, rtol=1e-6)
    assert below.get_xlabel() == "key position (means of 4)"
    assert above.lines[0].get_xdata()[:2].tolist() == [1.5, 5.5]


def test_heads_are_told_apart():
    x = normal(1, 3, 5, 4)
    below = plot_statistics(attention_statistics(x, x))[1]
    assert [text.get_text() for text in below.get_legend().get_texts()] == ["head 0", "head 1", "head 2"]
    x = normal(1, 16, 5, 4)
    assert plot_statistics(attention_statistics(x, x))[1].figure.axes[-1].get_ylabel() == "head"


def test_axes_that_are_given():
    pair = plt.subplots(1, 2)[1]
    x = normal(4, 8)
    assert list(plot_statistics(attention_statistics(x, x), ax=pair)) == list(pair)
    with pytest.raises(ValueError, match="ax must be a pair"):
        plot_statistics(attention_statistics(x, x), ax=pair[0])


def test_errors():
    with pytest.raises(TypeError, match="must be what attention_statistics returns, got ndarray"):
        plot_statistics(np.ones(3))
    x = normal(2, 3, 5, 4)
    with pytest.raises(ValueError, match=r"one batch item.*entropy \(1, H, S\).*got \(2, 3, 5\)"):
        plot_statistics(attention_statistics(x, x))
