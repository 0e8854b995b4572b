"""A step of training with JAX: parameters are a tree, keys are handed on."""

from typing import assert_type

import jax
import jax.numpy as jnp

from attention_xp import MultiHeadParams, init_multi_head_params, multi_head_attention


def loss(params: MultiHeadParams[jax.Array], x: jax.Array, key: jax.Array) -> jax.Array:
    """Return how far attention is from the identity."""
    output, weights = multi_head_attention(
        x, x, x, num_heads=2, d_model=x.shape[-1], params=params, is_causal=True, dropout_rate=0.1, rng=key,
        return_weights=False,
    )  # fmt: skip
    assert_type(weights, None)
    return jnp.mean((output - x) ** 2)


@jax.jit
def step(params: MultiHeadParams[jax.Array], x: jax.Array, key: jax.Array) -> MultiHeadParams[jax.Array]:
    """Go down the gradient."""
    gradients = jax.grad(loss)(params, x, key)
    moved: MultiHeadParams[jax.Array] = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    return moved


def main() -> None:
    """Take one step."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 8))
    params = init_multi_head_params(8, 2, rng=jax.random.key(1), like=x)
    moved = step(params, x, jax.random.key(2))
    assert moved.w_q.shape == (8, 8)
    assert moved.b_q is None


if __name__ == "__main__":
    main()
