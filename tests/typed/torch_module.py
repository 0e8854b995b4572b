"""A module of PyTorch with rotary positions and attention sinks."""

import torch
from torch import Tensor, nn

from attention_xp import flash_attention, rotary_embedding


class Attention(nn.Module):
    """Causal self-attention with grouped heads."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.sinks = nn.Parameter(torch.zeros(heads))
        self.project = nn.Linear(width, width + 2 * kv_heads * (width // heads))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Attend within (B, S, width)."""
        head_width = x.shape[-1] // self.heads
        sizes = [x.shape[-1], self.kv_heads * head_width, self.kv_heads * head_width]
        # (B, S, H * dh) -> (B, H, S, dh)
        q, k, v = (t.unflatten(-1, (-1, head_width)).transpose(1, 2) for t in self.project(x).split(sizes, dim=-1))
        attended = flash_attention(
            rotary_embedding(q), rotary_embedding(k), v, is_causal=True, sinks=self.sinks, key_lengths=lengths
        )
        result: Tensor = self.out(attended.transpose(1, 2).flatten(-2))
        return result


def main() -> None:
    """Take one step."""
    torch.manual_seed(0)
    module = Attention(16, 4, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loss = module(torch.randn(2, 6, 16), torch.tensor([6, 3])).square().mean()
    loss.backward()
    optimizer.step()
    assert module.sinks.grad is not None


if __name__ == "__main__":
    main()
