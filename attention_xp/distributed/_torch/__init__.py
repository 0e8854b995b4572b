"""The strategies for tensors of torch, in the processes of a process group."""

from attention_xp.distributed._torch.ring import ring_attention

__all__ = ["ring_attention"]
