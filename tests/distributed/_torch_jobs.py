"""What ranks of a world do, each for itself."""

import os
import time
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
import torch.distributed as dist

from attention_xp import distributed, flash_attention
from attention_xp.distributed import shard_positions
from attention_xp.distributed._torch import ring
from tests.distributed._calls import CALLS, HKV, S, inputs

TIMEOUT = 20.0


class Make:
    """Makes tensors, and keeps those that have gradients."""

    xp = xp

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.made = dtype, []

    def __call__(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if not tensor.is_floating_point():
            return tensor
        self.made.append(tensor.to(self.dtype).requires_grad_())
        return self.made[-1]


def _options(names: str, make: Any, rows: Any) -> dict[str, Any]:
    return {key: option for name in names.split(" + ") for key, option in CALLS[name](make, rows).items()}


def results(function: Any, names: str, dtype: torch.dtype, rows: Any, keys: Any, hkv: int = HKV) -> list[np.ndarray]:
    """Output, log-sum-exp, and the gradients of query, key, value and all floating arrays of the options."""
    make = Make(dtype)
    query, key, value, upstream = inputs()
    q, k, v = make(query[:, :, rows]), make(key[:, :hkv, keys]), make(value[:, :hkv, keys])
    output, lse = function(q, k, v, **_options(names, make, rows), return_lse=True)
    finite = torch.where(torch.isfinite(lse), lse, 0.0)
    (torch.sum(output * torch.from_numpy(upstream[:, :, rows]).to(dtype)) + torch.sum(torch.sin(finite))).backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in make.made]
    return [x.detach().to(torch.float64).numpy() for x in (output, lse, *gradients)]


def places(strategy: str, layout: str, n: int, rank: int) -> tuple[Any, Any]:
    """Which rows and which keys a rank holds."""
    own = shard_positions(n, rank, S, layout)
    return (list(range(S)) if strategy == "merged" else own), own


def _here(strategy: str, layout: str) -> tuple[Any, Any]:
    return places(strategy, layout, dist.get_world_size(), dist.get_rank())


def _strategy(name: str, layout: str, **more: Any) -> Any:
    function = getattr(distributed, f"{name}_attention")
    how = {"group": dist.group.WORLD, "layout": layout, "timeout": TIMEOUT} | more
    return lambda *arguments, **options: function(*arguments, **options, **how)


def attended(strategy: str, layout: str, names: str, dtype: str = "float64", hkv: int = HKV) -> list[np.ndarray]:
    """The results of this rank."""
    return results(_strategy(strategy, layout), names, getattr(torch, dtype), *_here(strategy, layout), hkv)


def dropped(strategy: str, layout: str) -> np.ndarray:
    """Which weights of the rows of this rank are not dropped."""
    rows, keys = _here(strategy, layout)
    query, key, value = _uniform()
    function = _strategy(strategy, layout)
    return (function(query[:, :, rows], key[:, :, keys], value[:, :, keys], None, 0.4, rng=5) != 0).numpy()


def _uniform() -> tuple[torch.Tensor, ...]:
    """Inputs whose output is the weights, all of them the same."""
    return torch.zeros(2, 4, S, 3), torch.zeros(2, 4, S, 3), torch.eye(S).expand(2, 4, S, S)


def all_dropped() -> np.ndarray:
    """The same for the whole, in one process."""
    return (flash_attention(*_uniform(), None, 0.4, rng=5) != 0).numpy()


def counted(layout: str, names: str, sequence: int, dtype: str = "float64") -> tuple[int, list[int]]:
    """How many blocks the ring computes forward, and how many bytes it sends forward and back, the comparison left out."""
    blocks, sent, attend, batch = [], [], ring.flash_attention, dist.batch_isend_irecv
    ring.flash_attention = lambda *a, **o: blocks.append(1) or attend(*a, **o)
    dist.batch_isend_irecv = lambda ops: (
        sent.append(sum(o.tensor.nbytes for o in ops if o.op is dist.isend)) or batch(ops)
    )
    n, rank = dist.get_world_size(), dist.get_rank()
    x = torch.ones(1, 1, sequence, 4, dtype=getattr(torch, dtype))[:, :, shard_positions(n, rank, sequence, layout)]
    try:
        output = _strategy("ring", layout)(x.requires_grad_(), x, x, **_options(names, Make(x.dtype), slice(None)))
        forward = sum(sent[1:])
        output.sum().backward()
    finally:
        ring.flash_attention, dist.batch_isend_irecv = attend, batch
    return len(blocks), [forward, sum(sent[1:]) - forward]


def refused(strategy: str, odd: int, change: str, timeout: float = TIMEOUT) -> str:
    """What is said to a call that one rank makes otherwise; afterwards the group must serve a right call."""
    x, options = torch.zeros(1, 4, 4, 4), {"is_causal": True, "dropout_rate": 0.1, "rng": 3}
    key, is_odd = x, dist.get_rank() == odd
    if is_odd and change == "shape":
        x = key = torch.zeros(1, 4, 6, 4)
    elif is_odd and change == "dtype":
        key = x.to(torch.float64)
    elif is_odd and change == "option":
        options["is_causal"] = False
    elif is_odd and change == "seed":
        options["rng"] = 4
    elif is_odd and change == "lengths":
        options["key_lengths"] = torch.tensor([3])
    elif is_odd and change == "stall":
        time.sleep(4 * timeout)
    start = time.monotonic()
    try:
        _strategy(strategy, "zigzag", timeout=timeout)(x, key, key, **options)
        said = "nothing"
    except (ConnectionError, TimeoutError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    assert time.monotonic() - start < 3 * timeout
    if change == "stall" and not is_odd:
        time.sleep(4 * timeout)
    attended(strategy, "zigzag", "causal")
    return said


def died(odd: int, timeout: float, way: str) -> str:
    """What is said where one rank ends before the call, in the middle of it, or on the way back."""
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    is_odd = dist.get_rank() == odd
    if is_odd and way == "before":
        os._exit(1)
    if is_odd and way == "in step 1":
        ring.flash_attention = lambda *_, **__: os._exit(1)
    start = time.monotonic()
    try:
        output = _strategy("ring", "contiguous", timeout=timeout)(x, x, x)
        if is_odd:
            os._exit(1)
        output.sum().backward()
    except (ConnectionError, TimeoutError) as error:
        assert time.monotonic() - start < 2 * timeout
        return f"{type(error).__name__}: {error}"
    return "nothing"
