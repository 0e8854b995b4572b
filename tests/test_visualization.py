"""What a plot of attention weights needs."""

import numpy as np
import pytest

from attention_xp import attention_score_visualization
from tests._assertions import assert_close
from tests._inputs import normal


@pytest.mark.parametrize(
    ("shape", "reduce"),
    [
        ((2, 4, 5, 7), lambda w: w[0].mean(axis=0)),
        ((2, 5, 7), lambda w: w[0]),
        ((5, 7), lambda w: w),
    ],
    ids=["heads", "batch", "matrix"],
)
def test_first_batch_item_and_mean_over_heads(library, make, shape, reduce):
    weights = np.abs(normal(*shape))
    view = attention_score_visualization(make(weights))
    expected = reduce(weights)
    assert set(view) == {"weights", "tokens", "shape", "max_attention", "min_attention"}
    assert_close(view["weights"], expected, library)
    assert tuple(view["shape"]) == (5, 7)
    assert type(view["max_attention"]) is type(view["min_attention"]) is float
    assert view["max_attention"] == pytest.approx(expected.max(), rel=1e-5)
    assert view["min_attention"] == pytest.approx(expected.min(), rel=1e-5)


@pytest.mark.parametrize("tokens", [None, ["a", "b"], ["a"] * 9, []])
def test_tokens_are_handed_through(make, tokens):
    assert attention_score_visualization(make(np.ones((1, 1, 3, 3))), tokens)["tokens"] == tokens


@pytest.mark.backends("torch")
def test_weights_that_want_gradients(make):
    view = attention_score_visualization(make(np.eye(3)).requires_grad_())  # a number of it is worth a warning
    assert (view["max_attention"], view["weights"].requires_grad) == (1.0, True)
