"""An encoder that works on any floating tensor, compiled or not."""

from collections.abc import Callable

import torch
from torch import Tensor

from attention_xp import create_causal_mask, dropout, layer_normalization, self_attention, softmax

Block = Callable[[Tensor], Tensor]


def attend(x: Tensor) -> Tensor:
    """Attend within a sequence, without the weights."""
    output, _ = self_attention(x, x.shape[-1], mask=create_causal_mask(x.shape[-2], like=x), return_weights=False)
    return output


def residual(block: Block, *, rate: float = 0.0) -> Block:
    """Add what a block makes of its normalised input to that input."""

    def run(x: Tensor) -> Tensor:
        return x + dropout(block(layer_normalization(x)), rate, rng=0)

    return run


def main() -> None:
    """Run two layers."""
    torch.manual_seed(0)
    blocks = [residual(attend, rate=0.1), residual(lambda x: softmax(x, axis=-1))]
    x = torch.randn(2, 5, 8, requires_grad=True)
    y = x
    for block in blocks:
        y = block(y)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape


if __name__ == "__main__":
    main()
