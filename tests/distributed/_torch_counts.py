"""What ranks of a world count: blocks, and the bytes that they send and keep."""

import contextlib
import gc
from typing import Any

import torch
import torch.distributed as dist

from attention_xp.distributed import shard_positions
from attention_xp.distributed._torch import ring
from tests.distributed._torch_jobs import Make, options_of, strategy_of


def counted(layout: str, names: str, sequence: int, dtype: str = "float64") -> tuple[int, list[int]]:
    """How many blocks the ring computes forward, and how many bytes it sends forward and back, the comparison left out."""
    blocks, sent, attend, batch = [], [], ring.flash_attention, dist.batch_isend_irecv
    ring.flash_attention = lambda *a, **o: blocks.append(1) or attend(*a, **o)
    is_sent = lambda op: op.op is dist.isend and op.tensor.is_floating_point()
    dist.batch_isend_irecv = lambda ops: sent.append(sum(op.tensor.nbytes for op in ops if is_sent(op))) or batch(ops)
    n, rank = dist.get_world_size(), dist.get_rank()
    x = torch.ones(1, 1, sequence, 4, dtype=getattr(torch, dtype))[:, :, shard_positions(n, rank, sequence, layout)]
    try:
        output = strategy_of("ring", layout)(x.requires_grad_(), x, x, **options_of(names, Make(x.dtype), slice(None)))
        forward = sum(sent)
        output.sum().backward()
    finally:
        ring.flash_attention, dist.batch_isend_irecv = attend, batch
    return len(blocks), [forward, sum(sent) - forward]


def kept(strategy: str, layout: str, call: Any) -> tuple[int, int]:
    """The bytes that a rank sends forward, and those that it keeps beside inputs and results while it computes.

    Sizes tell them apart: the results of blocks are no part of what is counted in a ring.
    """
    n, rank = dist.get_world_size(), dist.get_rank()
    own = shard_positions(n, rank, call.Sk, layout)
    query, key, value = (
        torch.ones(call.B, heads, call.Sk, call.D)[:, :, own].contiguous() for heads in (call.H, call.Hkv, call.Hkv)
    )
    options = {"is_causal": call.is_causal, "window": None if call.window is None else (call.window, call.window)}
    function = strategy_of(strategy, layout)
    sent, counts, batch, attend = [], [], dist.batch_isend_irecv, ring.flash_attention
    is_sent = lambda op: op.op is dist.isend and op.tensor.is_floating_point()
    dist.batch_isend_irecv = lambda ops: sent.append(sum(op.tensor.nbytes for op in ops if is_sent(op))) or batch(ops)
    ring.flash_attention = lambda *a, **o: counts.append(_counted(key, value)) or attend(*a, **o)
    try:
        with _allocations(counts) if strategy != "ring" else contextlib.nullcontext():
            function(query, key, value, impl="tiled", **options)
    finally:
        dist.batch_isend_irecv, ring.flash_attention = batch, attend
    return sum(sent), max(counts)


def _counted(*inputs: torch.Tensor) -> int:
    """The bytes of all tensors that have as many heads as some inputs, and are none of them."""
    alive = [
        x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.shape[-3:-2] == inputs[0].shape[-3:-2]
    ]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
    return sum(size for at, size in storages.items() if at not in [x.untyped_storage().data_ptr() for x in inputs])


@contextlib.contextmanager
def _allocations(counts: list[int]) -> Any:
    """Count the most bytes that torch has allocated at a time."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    counts[:], now = [], 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            counts.append(now)
