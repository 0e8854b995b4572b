"""Attention on arrays that are sharded along the sequence."""

from attention_xp.distributed._layouts import shard_positions, shard_sequence, unshard_sequence
from attention_xp.distributed._strategies import (
    gathered_attention,
    merged_attention,
    ring_attention,
    ulysses_attention,
)

__all__ = [
    "gathered_attention",
    "merged_attention",
    "ring_attention",
    "shard_positions",
    "shard_sequence",
    "ulysses_attention",
    "unshard_sequence",
]
