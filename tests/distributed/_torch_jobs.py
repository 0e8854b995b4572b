"""What ranks of a world do, each for itself."""

import functools
import os
import time
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
import torch._dynamo  # what checkpoints load when they are first used; here once for all ranks
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor

from attention_xp import distributed, flash_attention
from attention_xp.distributed import shard_positions
from attention_xp.distributed._torch import ring
from attention_xp.masks import ArrayMask, CausalMask, GlobalMask
from tests.distributed._calls import CALLS, COMBINED, HKV, S, inputs

TIMEOUT = 20.0


class Make:
    """Makes tensors, and keeps those that have gradients."""

    xp = xp

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.made = dtype, []

    def __call__(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array, order="C"))
        if not tensor.is_floating_point():
            return tensor
        self.made.append(tensor.to(self.dtype).requires_grad_())
        return self.made[-1]


def options_of(names: str, make: Any, rows: Any) -> dict[str, Any]:
    return (CALLS | COMBINED)[names](make, rows)


def results(function: Any, names: str, dtype: torch.dtype, rows: Any, keys: Any, hkv: int = HKV) -> list[np.ndarray]:
    """Output, log-sum-exp, and the gradients of query, key, value and all floating arrays of the options."""
    make = Make(dtype)
    query, key, value, upstream = inputs()
    q, k, v = make(query[:, :, rows]), make(key[:, :hkv, keys]), make(value[:, :hkv, keys])
    output, lse = function(q, k, v, **options_of(names, make, rows), return_lse=True)
    finite = torch.where(torch.isfinite(lse), lse, 0.0)
    (torch.sum(output * torch.from_numpy(upstream[:, :, rows]).to(dtype)) + torch.sum(torch.sin(finite))).backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in make.made]
    return [x.detach().to(torch.float64).numpy() for x in (output, lse, *gradients)]


def twice(function: Any, names: str, rows: Any, keys: Any) -> list[np.ndarray]:
    """The gradients of a sum of squares of gradients."""
    make = Make(torch.float64)
    query, key, value, upstream = inputs()
    q, k, v = make(query[:, :, rows]), make(key[:, :, keys]), make(value[:, :, keys])
    loss = torch.sum(
        torch.sin(function(q, k, v, **options_of(names, make, rows))) * torch.from_numpy(upstream[:, :, rows])
    )
    slopes = torch.autograd.grad(loss, make.made, create_graph=True)
    return [x.numpy() for x in torch.autograd.grad(sum((x**2).sum() for x in slopes), make.made)]


def differentiated_twice(strategy: str, layout: str, names: str) -> Any:
    """What comes of it on this rank, or what is said."""
    try:
        return twice(strategy_of(strategy, layout), names, *_here(strategy, layout))
    except RuntimeError as error:
        return str(error)


def places(strategy: str, layout: str, n: int, rank: int) -> tuple[Any, Any]:
    """Which rows and which keys a rank holds."""
    own = shard_positions(n, rank, S, layout)
    return (list(range(S)) if strategy == "merged" else own), own


def _here(strategy: str, layout: str) -> tuple[Any, Any]:
    return places(strategy, layout, dist.get_world_size(), dist.get_rank())


@functools.cache
def _mesh(*sizes: int) -> Any:
    return dist.device_mesh.init_device_mesh("cpu", sizes)


def strategy_of(name: str, layout: str, **more: Any) -> Any:
    name, *grid = name.split(" on ")
    function = getattr(distributed, f"{name}_attention")
    group = _mesh(*map(int, grid[0].split(" x "))) if grid else dist.group.WORLD
    how = {"group": group, "layout": layout, "timeout": TIMEOUT} | more
    return lambda *arguments, **options: function(*arguments, **options, **how)


def attended(strategy: str, layout: str, names: str, dtype: str = "float64", hkv: int = HKV) -> list[np.ndarray]:
    """The results of this rank."""
    return results(strategy_of(strategy, layout), names, getattr(torch, dtype), *_here(strategy, layout), hkv)


def _tensors() -> list[torch.Tensor]:
    """Query, key, value, and a gradient of the output."""
    return [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs()]


def crossed(strategy: str, layout: str) -> tuple[float, tuple[int, ...]]:
    """The error where there are twice as many keys as queries, and the shape of the output."""
    query, key, value, _ = _tensors()
    key, value = (torch.cat([x, x.flip(-2)], -2) for x in (key, value))
    n, rank = dist.get_world_size(), dist.get_rank()
    (rows, _), keys = _here(strategy, layout), shard_positions(n, rank, 2 * S, layout)
    options = {"is_causal": True, "query_offset": S, "sinks": torch.ones(4, dtype=query.dtype)}
    found = strategy_of(strategy, layout)(query[:, :, rows], key[:, :, keys], value[:, :, keys], **options)
    return _error(found, flash_attention(query, key, value, **options)[:, :, rows]), tuple(found.shape)


def _error(found: torch.Tensor, ought: torch.Tensor) -> float:
    return float(torch.max(torch.abs(found - ought)))


def decoded() -> float:
    """The error of a row that attends a cache of which each rank has a stretch, on some ranks an empty one."""
    query, key, value, _ = _tensors()
    keys = shard_positions(dist.get_world_size(), dist.get_rank(), S, "contiguous")
    options = {"is_causal": True, "query_offset": 9, "key_lengths": torch.tensor([10, 7])}
    row = query[:, :, 9:10]
    found = strategy_of("merged", "contiguous")(row, key[:, :, keys], value[:, :, keys], **options)
    return _error(found, flash_attention(row, key, value, **options))


def with_array_rule(strategy: str, layout: str) -> float:
    """The error where an array of pairs is a part of a rule."""
    query, key, value, _ = _tensors()
    (rows, keys), keep = (
        _here(strategy, layout),
        torch.rand(2, 4, S, S, generator=torch.Generator().manual_seed(0)) > 0.4,
    )
    function = strategy_of(strategy, layout)
    found = function(query[:, :, rows], key[:, :, keys], value[:, :, keys], CausalMask() & ~ArrayMask(keep[:, :, rows]))
    return _error(found, flash_attention(query, key, value, CausalMask() & ~ArrayMask(keep))[:, :, rows])


def on_mesh(strategy: str, *sizes: int) -> Any:
    """Whether DTensors give what tensors do, gradients too, and what comes out."""
    mesh, own = _mesh(*sizes), [Shard(2)] * len(sizes)
    query, key, value, upstream = _tensors()
    parts = [distribute_tensor(x, mesh, own).requires_grad_() for x in (query, key, value)]
    try:
        found = strategy_of(strategy, "contiguous", group=mesh)(*parts, is_causal=True)
    except TypeError as error:
        return type(error).__name__
    found.backward(distribute_tensor(upstream, mesh, own))
    whole = [x.requires_grad_() for x in (query, key, value)]
    ought = flash_attention(*whole, is_causal=True)
    ought.backward(upstream)
    pairs = zip((found, *(x.grad for x in parts)), (ought, *(x.grad for x in whole)), strict=True)
    is_right = all(_error(one.full_tensor(), other) < 1e-13 for one, other in pairs)
    return is_right, type(found).__name__, tuple(found.shape)


def alone(strategy: str) -> float:
    """The error in a group of one rank."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    query, key, value, _ = _tensors()
    found = strategy_of(strategy, "zigzag", group=groups[dist.get_rank()])(query, key, value, is_causal=True)
    return _error(found, flash_attention(query, key, value, is_causal=True))


def wrong(strategy: str, case: str) -> str:
    """What is said to a call that is wrong on all ranks."""
    x, how, options, weight = torch.zeros(1, 2, 4, 4), {}, {}, torch.ones((), requires_grad=True)
    query, key, value = x, x, x
    if case == "odd":
        query = key = value = x[:, :, :3]
    elif case == "values":
        value = x.to(torch.float64)
    elif case == "heads":
        query = x[:, :1]
        key = value = query
    elif case == "axes":
        query = key = value = x[0]
    elif case == "width":
        key = x[..., :3]
    elif case == "captured":
        options["score_mod"] = lambda score, b, h, q_idx, kv_idx: score * weight
    elif case == "generator":
        options = {"dropout_rate": 0.1, "rng": torch.Generator()}
    elif case == "group":
        how["group"] = "ring"
    elif case == "axes of a mesh":
        how["group"] = dist.device_mesh.init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))
    elif case == "three groups":
        how["group"] = (dist.group.WORLD,) * 3
    elif case == "the same group twice":
        how["group"] = (dist.group.WORLD,) * 2
    try:
        strategy_of(strategy, "zigzag", **how)(query, key, value, **options)
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing"


def dropped(strategy: str, layout: str) -> np.ndarray:
    """Which weights of the rows of this rank are not dropped."""
    rows, keys = _here(strategy, layout)
    query, key, value = _uniform()
    function = strategy_of(strategy, layout)
    return (function(query[:, :, rows], key[:, :, keys], value[:, :, keys], None, 0.4, rng=5) != 0).numpy()


def _uniform() -> tuple[torch.Tensor, ...]:
    """Inputs whose output is the weights, all of them the same."""
    return torch.zeros(2, 4, S, 3), torch.zeros(2, 4, S, 3), torch.eye(S).expand(2, 4, S, S)


def all_dropped() -> np.ndarray:
    """The same for the whole, in one process."""
    return (flash_attention(*_uniform(), None, 0.4, rng=5) != 0).numpy()


def refused(strategy: str, odd: int, change: str, timeout: float = TIMEOUT) -> str:
    """What is said to a call that one rank makes otherwise; afterwards the group must serve a right call."""
    x, options = torch.zeros(1, 4, 4, 4), {"is_causal": True, "dropout_rate": 0.1, "rng": 3}
    if change == "lengths":
        options["key_lengths"] = torch.tensor([3])
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
        options["key_lengths"] = torch.tensor([4])
    elif change == "rule":
        options["mask"] = GlobalMask(torch.tensor([is_odd, *[False] * 15]))
    elif is_odd and change == "stall":
        time.sleep(4 * timeout)
    start = time.monotonic()
    try:
        strategy_of(strategy, "zigzag", timeout=timeout)(x, key, key, **options)
        said = "nothing"
    except (ConnectionError, TimeoutError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    assert time.monotonic() - start < 3 * timeout
    if change == "stall" and not is_odd:
        time.sleep(4 * timeout)
    attended(strategy, "zigzag", "causal")
    return said


def died(odd: int, timeout: float, way: str) -> str:
    """What is said where one rank ends in the middle of a call, or before the way back."""
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    is_odd = dist.get_rank() == odd
    if is_odd and way == "in step 1":
        ring.flash_attention = lambda *_, **__: os._exit(1)
    start = time.monotonic()
    try:
        output = strategy_of("ring", "contiguous", timeout=timeout)(x, x, x)
        if is_odd:
            os._exit(1)
        output.sum().backward()
    except (ConnectionError, TimeoutError) as error:
        assert time.monotonic() - start < 2 * timeout
        return f"{type(error).__name__}: {error}"
    return "nothing"
