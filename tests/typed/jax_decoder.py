"""A decoder in JAX, with a cache of a fixed size."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attention_xp import alibi_slopes, flash_attention
from attention_xp.biases import AlibiBias


class Cache(NamedTuple):
    """Keys and values, and how many there are."""

    key: jax.Array
    value: jax.Array
    length: jax.Array


@partial(jax.jit, static_argnames="window")
def step(cache: Cache, x: jax.Array, window: int) -> tuple[jax.Array, Cache]:
    """Attend with one more row, (B, H, 1, D)."""
    start = (0, 0, cache.length, 0)
    key = jax.lax.dynamic_update_slice(cache.key, x, start)
    value = jax.lax.dynamic_update_slice(cache.value, x, start)
    lengths = jnp.broadcast_to(cache.length + 1, x.shape[:1])
    output = flash_attention(
        x, key, value, bias=AlibiBias(alibi_slopes(x.shape[1], like=x)), query_offset=lengths - 1, window=(window, 0),
        key_lengths=lengths,
    )  # fmt: skip
    return output, Cache(key, value, cache.length + 1)


def main() -> None:
    """Write two rows."""
    x = jnp.ones((1, 2, 1, 4))
    cache = Cache(jnp.zeros((1, 2, 8, 4)), jnp.zeros((1, 2, 8, 4)), jnp.asarray(0))
    for _ in range(2):
        output, cache = step(cache, x, 4)
        assert output.shape == x.shape
    assert int(cache.length) == 2


if __name__ == "__main__":
    main()
