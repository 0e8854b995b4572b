"""The strategies for tensors of torch, in the processes of a process group."""

from attention_xp.distributed._torch.gathered import gathered_attention
from attention_xp.distributed._torch.merged import merged_attention
from attention_xp.distributed._torch.ring import ring_attention
from attention_xp.distributed._torch.ulysses import ulysses_attention

__all__ = ["gathered_attention", "merged_attention", "ring_attention", "ulysses_attention"]
