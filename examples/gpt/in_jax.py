"""The model in JAX: `jax.grad` goes through `attention_xp.flash_attention`, and a whole step is compiled."""

from functools import partial

import jax
import jax.numpy as jnp

from attention_xp import flash_attention
from gpt.weights import Array, Config, Layer, Weights


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Scale every row to root mean square 1, then every column by its gain."""
    square = jnp.mean(x * x, axis=-1, keepdims=True)  # (B, S, E) -> (B, S, 1)
    return x * jax.lax.rsqrt(square + jnp.finfo(x.dtype).eps) * gain


def block(x: jax.Array, layer: Layer, config: Config) -> jax.Array:
    """Add to x (B, S, E) first what attention finds, then what two dense layers make of it."""
    B, S, E = x.shape
    qkv = rms_norm(x, layer.attention_norm) @ layer.qkv  # (B, S, E) @ (E, 3 * E) -> (B, S, 3 * E)
    heads = qkv.reshape(B, S, 3, config.heads, -1)  # (B, S, 3 * E) -> (B, S, 3, H, D)
    query, key, value = heads.transpose(2, 0, 3, 1, 4)  # (B, S, 3, H, D) -> 3 times (B, H, S, D)
    mixed = flash_attention(query, key, value, is_causal=True)
    x = x + mixed.swapaxes(1, 2).reshape(B, S, E) @ layer.project  # (B, H, S, D) -> (B, S, E)
    wide = rms_norm(x, layer.mlp_norm) @ layer.widen  # (B, S, E) @ (E, 4 * E) -> (B, S, 4 * E)
    return x + jax.nn.gelu(wide, approximate=True) @ layer.narrow  # (B, S, 4 * E) @ (4 * E, E) -> (B, S, E)


@partial(jax.jit, static_argnames="config")
def forward(weights: Weights, ids: jax.Array, config: Config) -> jax.Array:
    """Return the logits of the character that follows each of ids: (B, S) -> (B, S, V)."""
    x = weights.tokens[ids] + weights.positions  # (B, S) -> (B, S, E)
    # The loop over the leading axis of all weights of the layers; one layer is compiled, not L.
    x, _ = jax.lax.scan(lambda x, layer: (block(x, layer, config), None), x, weights.layers)
    return rms_norm(x, weights.norm) @ weights.tokens.T  # (B, S, E) @ (E, V) -> (B, S, V)


def cross_entropy(weights: Weights, ids: jax.Array, targets: jax.Array, config: Config) -> jax.Array:
    """Return the mean of -log p(target): (B, S) -> ()."""
    log_p = jax.nn.log_softmax(forward(weights, ids, config))
    return -jnp.mean(jnp.take_along_axis(log_p, targets[..., None], axis=-1))  # (B, S, V) -> (B, S, 1) -> ()


@partial(jax.jit, static_argnames="config")
def update(
    weights: Weights, means: Weights, squares: Weights, steps: int, ids: jax.Array, targets: jax.Array, config: Config
) -> tuple[jax.Array, Weights, Weights, Weights]:
    """Return the loss and what a step of Adam makes of the weights and the two running means."""
    loss, gradients = jax.value_and_grad(cross_entropy)(weights, ids, targets, config)
    means = jax.tree.map(lambda m, g: m + (1 - config.decay_mean) * (g - m), means, gradients)
    squares = jax.tree.map(lambda s, g: s + (1 - config.decay_square) * (g * g - s), squares, gradients)
    warm_mean, warm_square = 1 - config.decay_mean**steps, 1 - config.decay_square**steps

    def move(w: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
        return w - config.learning_rate * (mean / warm_mean) / (jnp.sqrt(square / warm_square) + config.epsilon)

    return loss, jax.tree.map(move, weights, means, squares), means, squares


class Model:
    """The model and its optimiser, Adam."""

    def __init__(self, weights: Weights, config: Config) -> None:
        self.config = config
        self.weights = jax.tree.map(jnp.asarray, weights)
        self.means = self.squares = jax.tree.map(jnp.zeros_like, self.weights)
        self.steps = 0

    def logits(self, ids: Array) -> Array:
        """Return the logits of the next characters: (B, S) -> (B, S, V)."""
        return jax.device_get(forward(self.weights, ids, self.config))

    def step(self, ids: Array, targets: Array) -> float:
        """Learn from a batch and return the loss before."""
        self.steps += 1
        loss, self.weights, self.means, self.squares = update(
            self.weights, self.means, self.squares, self.steps, ids, targets, self.config
        )
        return loss.item()
