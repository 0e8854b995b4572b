"""What the three models have in common: their sizes and the weights that they start from."""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = Any  # no common base class exists across array libraries: this name is for the reader


class Config(NamedTuple):
    """The sizes of the model and the numbers of its training."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64  # characters that the model sees at once
    batch: int = 16
    learning_rate: float = 1e-3  # twice that shakes this model, and then rounding grows visible
    decay_mean: float = 0.9  # of the running mean of the gradients in Adam,
    decay_square: float = 0.99  # and of their squares
    epsilon: float = 1e-8


class Layer(NamedTuple):
    """The weights of one layer; as part of `Weights`, those of all layers, stacked along a leading axis L."""

    attention_norm: Array  # (E,)
    qkv: Array  # (E, 3 * E)
    project: Array  # (E, E)
    mlp_norm: Array  # (E,)
    widen: Array  # (E, 4 * E)
    narrow: Array  # (4 * E, E)


class Weights(NamedTuple):
    """The whole model; its gradients have the same form. A named tuple is a pytree to JAX."""

    tokens: Array  # (V, E)
    positions: Array  # (S, E)
    norm: Array  # (E,)
    layers: Layer

    def each_layer(self) -> list[Layer]:
        """Return the layers one by one."""
        return [Layer(*arrays) for arrays in zip(*self.layers, strict=True)]  # (L, ...) -> L times (...)

    def arrays(self) -> list[Array]:
        """Return all arrays, in a fixed order."""
        return [*self[:-1], *self.layers]


def initial_weights(config: Config, alphabet: int, seed: int) -> Weights:
    """Draw the weights as GPT-2 does: normal, and smaller where a layer adds to what runs through all layers."""
    rng = np.random.default_rng(seed)
    L, E = config.layers, config.width
    residual = 0.02 / math.sqrt(2 * L)  # 2 * L terms are added up

    def normal(*shape: int, scale: float = 0.02) -> Array:
        return scale * rng.standard_normal(shape, dtype=np.float32)

    def ones(*shape: int) -> Array:
        return np.ones(shape, np.float32)

    layers = Layer(
        attention_norm=ones(L, E),
        qkv=normal(L, E, 3 * E),
        project=normal(L, E, E, scale=residual),
        mlp_norm=ones(L, E),
        widen=normal(L, E, 4 * E),
        narrow=normal(L, 4 * E, E, scale=residual),
    )
    return Weights(normal(alphabet, E), normal(config.context, E), ones(E), layers)
