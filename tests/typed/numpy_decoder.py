"""A decoder that writes one token after the other, with a cache of keys and values."""

import numpy as np
from numpy.typing import NDArray

from attention_xp import rotary_cache, rotary_embedding, scaled_dot_product_attention, self_attention

Floats = NDArray[np.float32]


class Cache:
    """Keys and values of what was written."""

    def __init__(self, heads: int, capacity: int, width: int) -> None:
        self.key: Floats = np.zeros((1, heads, capacity, width), dtype=np.float32)
        self.value: Floats = np.zeros_like(self.key)
        self.length = 0

    def add(self, key: Floats, value: Floats) -> None:
        """Write rows."""
        stop = self.length + key.shape[-2]
        self.key[:, :, self.length : stop] = key
        self.value[:, :, self.length : stop] = value
        self.length = stop


def step(cache: Cache, x: Floats, *, want_weights: bool) -> tuple[Floats, Floats | None]:
    """Attend with one more token; whether the weights are wanted is known at run time alone."""
    table = rotary_cache(cache.key.shape[-2], x.shape[-1], like=x)
    turned = rotary_embedding(x, np.asarray([[cache.length]]), cache=table)
    cache.add(turned, x)
    return scaled_dot_product_attention(
        turned, cache.key, cache.value, key_lengths=cache.length, is_causal=True, query_offset=cache.length - 1,
        return_weights=want_weights,
    )  # fmt: skip


def main() -> None:
    """Write four tokens."""
    rng = np.random.default_rng(0)
    cache = Cache(2, 8, 4)
    for number in range(4):
        x = rng.standard_normal((1, 2, 1, 4), dtype=np.float32)
        output, weights = step(cache, x, want_weights=number > 1)
        assert output.shape == (1, 2, 1, 4)
        assert (weights is not None) == (number > 1)
    prompt = rng.standard_normal((1, 6, 8), dtype=np.float32)
    output, weights = self_attention(prompt, d_model=8, is_causal=True, dropout_rate=0.1, rng=1)
    assert weights.shape == (1, 6, 6)
    assert output.dtype == np.float32


if __name__ == "__main__":
    main()
