"""Functions of tensors: scores of one's own, learned projections, packed sequences, linear attention."""

from typing import assert_type

import torch
from torch import Tensor

from attention_xp import (
    attention_vjp,
    cross_attention,
    flash_attention,
    init_multi_head_params,
    multi_head_attention,
    varlen_attention,
)
from attention_xp.linear import LinearState, linear_attention
from attention_xp.masks import CausalMask


def near_is_dear(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """Prefer what is near."""
    return score - 0.1 * (q_idx - kv_idx).abs()


def remember(chunks: list[Tensor]) -> Tensor:
    """Attend to one chunk after the other in memory of a fixed size."""
    state: LinearState[Tensor] | None = None
    outputs: list[Tensor] = []
    for x in chunks:
        output, state = linear_attention(x, x, x, state=state, return_state=True)
        outputs.append(output)
    return torch.cat(outputs, dim=-2)


def main() -> None:
    """Call each once."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 6, 8) for _ in range(3))
    output, lse = flash_attention(q, k, v, score_mod=near_is_dear, return_lse=True, scale=0.3)
    assert_type(output, Tensor)
    assert lse.shape == (2, 4, 6)
    x = torch.randn(2, 6, 16)
    params = init_multi_head_params(16, 4, num_kv_heads=2, rng=torch.Generator().manual_seed(0), like=x)
    mixed, weights = multi_head_attention(x, x, x, 4, 16, CausalMask(), params=params, num_kv_heads=2)
    assert_type(weights, Tensor)
    assert mixed.shape == x.shape
    decoded, _ = cross_attention(x, torch.randn(2, 9, 16), 16, mask=torch.ones(2, 6, 9, dtype=torch.bool))
    packed = torch.randn(10, 4, 8)
    cu_seqlens = torch.tensor([0, 3, 10], dtype=torch.int32)
    assert varlen_attention(packed, packed, packed, cu_seqlens, is_causal=True).shape == packed.shape
    assert remember([q, k]).shape == (2, 4, 12, 8)
    output, vjp = attention_vjp(q, k, v, bias=torch.zeros(6, 6))
    found = vjp(torch.ones_like(output))
    assert found.bias is not None
    assert (decoded.shape, found.query.shape) == (x.shape, q.shape)


if __name__ == "__main__":
    main()
