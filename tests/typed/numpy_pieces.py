"""Attention over pieces of the keys, its statistics and its gradients."""

import numpy as np
from numpy.typing import NDArray

from attention_xp import (
    AttentionGradients,
    attention_scores,
    attention_statistics,
    attention_vjp,
    explain,
    flash_attention,
    merge_attention,
    softmax,
)

Doubles = NDArray[np.float64]


def in_pieces(query: Doubles, key: Doubles, value: Doubles, size: int) -> Doubles:
    """Attend to some keys at a time."""
    outputs: list[Doubles] = []
    lses: list[Doubles] = []
    for start in range(0, key.shape[-2], size):
        piece = (..., slice(start, start + size), slice(None))
        output, lse = flash_attention(
            query, key[piece], value[piece], return_lse=True, output_dtype=query.dtype, impl="tiled"
        )
        outputs.append(output)
        lses.append(lse)
    return merge_attention(outputs, lses)[0]


def gradients(query: Doubles, key: Doubles, value: Doubles) -> AttentionGradients[Doubles]:
    """Return the gradients of half the sum of squares."""
    output, vjp = attention_vjp(query, key, value, is_causal=True, softcap=20.0)
    return vjp(output)


def main() -> None:
    """Compare the pieces with the whole."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 4, 32, 8)) for _ in range(3))
    assert np.allclose(in_pieces(query, key, value, 10), flash_attention(query, key, value))
    found = gradients(query, key, value)
    assert found.key.shape == key.shape
    assert found.bias is None
    scores: Doubles = attention_scores(query, key, scale=0.5, stage="product")
    assert scores.shape == (2, 4, 32, 32)
    statistics = attention_statistics(query, key, scale=0.5, key_lengths=np.asarray([32, 7]))
    assert np.exp(statistics.entropy).max() <= 32.0
    assert np.isclose(softmax(rng.standard_normal(5)).sum(), 1.0)
    assert explain(query, key, value, is_causal=True).kernel in {"dense", "tiled"}


if __name__ == "__main__":
    main()
