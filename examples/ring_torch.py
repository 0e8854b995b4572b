"""Attend on several processes of torch: torchrun --nproc-per-node=2 examples/ring_torch.py."""

import torch
import torch.distributed as dist

from attention_xp import flash_attention
from attention_xp.distributed import ring_attention, shard_sequence

dist.init_process_group("gloo")
n, rank = dist.get_world_size(), dist.get_rank()
whole = torch.randn(3, 1, 8, 512, 64, generator=torch.Generator().manual_seed(0))  # the same on all ranks
query, key, value = (shard_sequence(x, n, layout="zigzag")[rank].requires_grad_() for x in whole)
output = ring_attention(query, key, value, is_causal=True, group=dist.group.WORLD, timeout=60)
output.sum().backward()

ought = shard_sequence(flash_attention(*whole, is_causal=True), n, layout="zigzag")[rank]
print(
    f"rank {rank} of {n}: {output.shape[-2]} rows, error {torch.max(torch.abs(output - ought)).item():.0e}", flush=True
)
dist.destroy_process_group()
