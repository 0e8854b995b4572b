"""The model in PyTorch: autograd goes through `attention_xp.flash_attention`, and the optimiser is torch's own."""

import torch
from torch.nn import functional as F  # noqa: N812  # so everyone calls it

from attention_xp import flash_attention
from gpt.weights import Array, Config, Layer, Weights


def block(x: torch.Tensor, layer: Layer, config: Config) -> torch.Tensor:
    """Add to x (B, S, E) first what attention finds, then what two dense layers make of it."""
    E, H = config.width, config.heads
    qkv = F.rms_norm(x, (E,), layer.attention_norm) @ layer.qkv  # (B, S, E) @ (E, 3 * E) -> (B, S, 3 * E)
    split = qkv.unflatten(-1, (3, H, E // H)).permute(2, 0, 3, 1, 4)  # (B, S, 3 * E) -> (3, B, H, S, D)
    mixed = flash_attention(*split, is_causal=True)  # 3 times (B, H, S, D) -> (B, H, S, D)
    x = x + mixed.transpose(1, 2).flatten(-2) @ layer.project  # (B, H, S, D) -> (B, S, E)
    wide = F.rms_norm(x, (E,), layer.mlp_norm) @ layer.widen  # (B, S, E) @ (E, 4 * E) -> (B, S, 4 * E)
    return x + F.gelu(wide, approximate="tanh") @ layer.narrow  # (B, S, 4 * E) @ (4 * E, E) -> (B, S, E)


def forward(weights: Weights, ids: torch.Tensor, config: Config) -> torch.Tensor:
    """Return the logits of the character that follows each of ids: (B, S) -> (B, S, V)."""
    x = F.embedding(ids, weights.tokens) + weights.positions  # (B, S) -> (B, S, E)
    for layer in weights.each_layer():
        x = block(x, layer, config)
    return F.rms_norm(x, (config.width,), weights.norm) @ weights.tokens.T  # (B, S, E) @ (E, V) -> (B, S, V)


class Model:
    """The model and its optimiser."""

    def __init__(self, weights: Weights, config: Config) -> None:
        def parameter(w: Array) -> torch.Tensor:
            return torch.tensor(w, requires_grad=True)  # a copy

        self.config = config
        self.weights = Weights(*map(parameter, weights[:-1]), Layer(*map(parameter, weights.layers)))
        self.adam = torch.optim.Adam(
            self.weights.arrays(), config.learning_rate, (config.decay_mean, config.decay_square), config.epsilon
        )

    @torch.no_grad()
    def logits(self, ids: Array) -> Array:
        """Return the logits of the next characters: (B, S) -> (B, S, V)."""
        return forward(self.weights, torch.tensor(ids), self.config).numpy()

    def step(self, ids: Array, targets: Array) -> float:
        """Learn from a batch and return the loss before."""
        logits = forward(self.weights, torch.tensor(ids), self.config)
        loss = F.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())  # (N, V), (N,) -> ()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.item()
