"""A layer of an encoder, in float32, over a padded batch."""

from typing import NamedTuple, assert_type

import numpy as np
from numpy.typing import NDArray

from attention_xp import (
    MultiHeadParams,
    create_padding_mask,
    dropout,
    init_multi_head_params,
    layer_normalization,
    multi_head_self_attention,
    positional_encoding,
)

Floats = NDArray[np.float32]


class Layer(NamedTuple):
    """What a layer has learned."""

    attention: MultiHeadParams[Floats]
    w_in: Floats
    w_out: Floats


def make_layer(width: int, heads: int, rng: np.random.Generator) -> Layer:
    """Draw a layer."""
    w_in = rng.standard_normal((width, 4 * width), dtype=np.float32)
    w_out = rng.standard_normal((4 * width, width), dtype=np.float32)
    return Layer(init_multi_head_params(width, heads, rng=rng, like=w_in), w_in / 8.0, w_out / 16.0)


def encode(
    layer: Layer, x: Floats, mask: NDArray[np.bool], width: int, *, heads: int, rng: int | None = None
) -> Floats:
    """Attend and map, each beside a residual connection."""
    attended, weights = multi_head_self_attention(
        layer_normalization(x), heads, width, mask=mask, params=layer.attention, return_weights=False
    )
    assert_type(weights, None)
    x = x + dropout(attended, 0.1, rng=rng)
    hidden: Floats = np.maximum(layer_normalization(x) @ layer.w_in, 0.0)
    mapped: Floats = hidden @ layer.w_out
    return x + mapped


def main() -> None:
    """Encode two sentences."""
    rng = np.random.default_rng(0)
    tokens = np.asarray([[5, 8, 2, 0, 0], [3, 9, 0, 0, 0]])
    x: Floats = rng.standard_normal((2, 5, 16), dtype=np.float32)
    x = x + positional_encoding(5, 16, like=x)
    y = encode(make_layer(16, 4, rng), x, create_padding_mask(tokens, dtype="bool"), 16, heads=4, rng=7)
    assert y.shape == x.shape
    assert y.dtype == np.float32


if __name__ == "__main__":
    main()
