"""Functions that serve every library, whose arrays are the type that comes in."""

from typing import Any, TypeVar

import numpy as np

from attention_xp import AttentionStatistics, attention_score_visualization, attention_statistics, flash_attention

T = TypeVar("T", bound=Any)


def attend_twice(x: T, context: T) -> T:
    """Attend to a context, and to what came of it."""
    once = flash_attention(x, context, context)
    return flash_attention(once, context, context, softcap=10.0)


def sharpness(query: Any, key: Any) -> AttentionStatistics:
    """Return the statistics of arrays of whatever library."""
    return attention_statistics(query, key)


def main() -> None:
    """Call both with NumPy."""
    x = np.ones((2, 5, 8))
    y = attend_twice(x, x)
    assert y.shape == (2, 5, 8)
    assert sharpness(x, x).entropy.shape == (2, 5)
    view = attention_score_visualization(np.full((1, 2, 2), 0.5), ["the", "cat"])
    assert view["tokens"] == ["the", "cat"]


if __name__ == "__main__":
    main()
