"""What all strategies do first: compare the calls of all ranks, and say which arguments these hold alike."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor, Shard

from attention_xp._scores.frozen import freeze, thaw
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.distributed._layouts import Layout
from attention_xp.distributed._torch.agreement import agree
from attention_xp.distributed._torch.collectives import once, shared, tied
from attention_xp.distributed._torch.messages import Ranks, axes_of, process_group

__all__ = ["Prepared", "finished", "prepared"]


class Prepared(NamedTuple):
    """A call of which all ranks have agreed that it is the same."""

    axes: tuple[Ranks, ...]  # the ranks; of two axes, the first is a ring of those that hold the same heads
    query: Array
    key: Array
    value: Array
    mask: Any
    dropout_rate: Any
    options: dict[str, Any]
    layout: Layout
    mesh: Any  # of the DTensors that were given, None for plain tensors
    shared: list[Array]  # what all ranks hold alike and has gradients

    @property
    def ranks(self) -> Ranks:
        """Those along the only axis, or along the last one."""
        return self.axes[-1]


def prepared(
    function: str,
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    dropout_rate: Any,
    options: Mapping[str, Any],
    *,
    group: Any,
    layout: Layout,
    return_lse: bool,
    timeout: float | None,
    has_own_rows: bool = True,
    on_two_axes: bool = False,
    is_differentiated_twice: bool = False,
) -> Prepared:
    """Return a call as its strategy needs it; what is wrong with it on one rank is raised on all.

    Second derivatives are refused on two axes, and unless the call `is_differentiated_twice`: a ring computes its gradients
    itself, and merged ranks may need different second derivatives, so that one would wait for another in vain.
    """
    groups = axes_of(group) if on_two_axes else (group,)
    axes = Ranks.along(groups, function, timeout)
    mesh = _mesh(query, key, value, layout, groups)
    if mesh is not None and not has_own_rows:
        raise TypeError(f"{function} computes with plain tensors: expected query.to_local(), got DTensors")
    if mesh is not None:
        query, key, value = query.to_local(), key.to_local(), value.to_local()
    arrays = {"query": query, "key": key, "value": value, "mask": mask}
    how = {"dropout_rate": dropout_rate, "layout": layout, "return_lse": return_lse}
    agree(axes, {"function": function, **arrays, **how, **options}, query.device)
    _check(query, key, value, layout, axes[-1].of, has_own_rows=has_own_rows)
    _refuse_captured(query, options.get("score_mod"))
    shares: list[Array] = []

    def mark(x: Any, name: str) -> Any:
        marked = x
        for ranks in axes:
            marked = shared(marked, ranks, name)
        shares.extend([] if marked is x else [marked])
        return marked

    rows = query.shape[-2] if has_own_rows else None
    options = {name: mark(x, name) if name in {"sinks", "scale"} else x for name, x in options.items() if x is not None}
    mask = _marked(mask, rows, mark, "mask")
    if "bias" in options:
        options["bias"] = _marked(options["bias"], rows, mark, "bias")
    if len(axes) == 2 or not is_differentiated_twice:
        rest, held = freeze((query, key, value, mask, *options.values()))
        query, key, value, mask, *values = thaw(rest, once(held, function))
        options = dict(zip(options, values, strict=True))
    return Prepared(axes, query, key, value, mask, dropout_rate, options, layout, mesh, shares)


def finished(given: Prepared, output: Array, lse: Array, *, return_lse: bool) -> Any:
    """Return the results of a call as they were asked for."""
    output, lse = tied(output, lse, given.shared)
    if given.mesh is not None:
        output, lse = (
            DTensor.from_local(x, given.mesh, (Shard(axis),) * given.mesh.ndim)
            for x, axis in ((output, output.ndim - 2), (lse, lse.ndim - 1))
        )
    return (output, lse) if return_lse else output


def _check(query: Array, key: Array, value: Array, layout: Layout, n: int, *, has_own_rows: bool) -> None:
    """Refuse shards that are none of their layout; the rest is checked block by block, before anything is sent."""
    if key.dtype != value.dtype or key.device != value.device:
        raise TypeError(f"key and value must have one dtype and device, got {key.dtype} and {value.dtype}")
    for name, x in (("query", query), ("key", key)):
        if x.ndim < 2:
            raise ValueError(f"{name} must have at least 2 axes: expected (..., H, S, D), got {tuple(x.shape)}")
        if layout == "zigzag" and x.shape[-2] % 2 and (has_own_rows or name == "key"):
            raise ValueError(
                f"{name} of a zigzag layout holds two equal stretches of the sequence: expected an even number of positions, "
                f"got {x.shape[-2]} for {n} ranks"
            )


def _mesh(query: Any, key: Any, value: Any, layout: Layout, groups: tuple[Any, ...]) -> Any:
    """Return the mesh of DTensors that are sharded along the sequence, None for plain tensors."""
    named = {"query": query, "key": key, "value": value}
    kinds = {name: isinstance(x, DTensor) for name, x in named.items()}
    if not any(kinds.values()):
        return None
    if not all(kinds.values()):
        raise TypeError(f"query, key and value must all be DTensors, or none of them: got {kinds}")
    for name, x in named.items():
        expected = (Shard(x.ndim - 2),) * len(groups)
        if x.placements != expected or x.shape[-2] % x.device_mesh.size():
            which = "a mesh with one axis" if len(groups) == 1 else "a mesh with two axes"
            raise TypeError(
                f"{name} must be sharded evenly along its sequence on {which}: expected {expected}, "
                f"got {x.placements} of {tuple(x.shape)}"
            )
    if layout != "contiguous":
        raise ValueError(f"layout of DTensors must be 'contiguous', as they shard their axes, got {layout!r}")
    mesh = query.device_mesh
    if any(process_group(group) is not mesh.get_group(axis) for axis, group in enumerate(groups)):
        raise ValueError("group must be the device mesh of the DTensors, or its process groups")
    return mesh


def _refuse_captured(query: Array, score_mod: Any) -> None:
    """Refuse functions of which the gradients of captured tensors would be those of one rank's pairs alone."""
    function = score_mod[0] if isinstance(score_mod, tuple) else score_mod
    if not callable(function) or not torch.is_grad_enabled():
        return
    one = (1,) * query.ndim
    index = torch.zeros(one, dtype=torch.int32, device=query.device)
    score = torch.zeros(one, dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    if function(score, index, index, index, index).requires_grad:
        raise ValueError(
            "score_mod has captured a tensor that needs gradients, which are not summed over ranks: give it as an array of a "
            "Bias, or detach it"
        )


def _marked(given: Any, rows: int | None, mark: Callable[[Any, str], Any], name: str) -> Any:
    """Mark what all ranks hold alike in a bias or a mask: the arrays of a bias, and arrays without rows of their own."""
    if isinstance(given, Bias):
        template, arrays = freeze(given)
        return thaw(template, [mark(array, name) for array in arrays])
    return given if hasattr(given, "shape") and given.shape[-2:-1] == (rows,) else mark(given, name)
