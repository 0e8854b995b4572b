"""Attention on arrays of JAX that are sharded along the sequence, inside `jax.shard_map`."""

from attention_xp.distributed._jax.gathered import gathered_attention
from attention_xp.distributed._jax.merged import merged_attention
from attention_xp.distributed._jax.ring import ring_attention
from attention_xp.distributed._jax.ulysses import ulysses_attention

__all__ = ["gathered_attention", "merged_attention", "ring_attention", "ulysses_attention"]
