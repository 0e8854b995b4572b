"""Attention on arrays that are sharded along the sequence."""

from attention_xp.distributed._layouts import shard_positions, shard_sequence, unshard_sequence

__all__ = ["shard_positions", "shard_sequence", "unshard_sequence"]
