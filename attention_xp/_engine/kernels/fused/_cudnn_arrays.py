"""The arrays that cuDNN reads and writes, and their layouts in memory."""

import math

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device
from attention_xp._engine.kernels.fused._cudnn_graph import Layout, Spec
from attention_xp._engine.kernels.fused._translation import (
    added,
    allowed,
    column_rules,
    operand,
    valid_lengths,
    with_zero_keys,
)
from attention_xp._engine.problem.problem import Problem
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["address", "bias_shape", "inputs", "layout", "outputs"]

_WORD = 16  # bytes that a kernel loads at once


def inputs(problem: Problem, spec: Spec) -> dict[str, Array]:
    """Return the arrays that the graph reads, each in the layout that the graph was built for."""
    rules = column_rules(problem)
    padded = {"query": problem.query}
    padded |= {name: with_zero_keys(problem, rules, getattr(problem, name)) for name in ("key", "value")}
    arrays = {name: _laid_out(operand(problem, a), getattr(spec, name)) for name, a in padded.items()}
    if spec.bias is not None:
        arrays["bias"] = _dense(_bias(problem, rules, spec.bias))
    if spec.has_lengths:
        for name, lengths in zip(("query", "key"), valid_lengths(problem, rules), strict=True):
            length = getattr(problem, name).shape[-2]
            arrays[f"{name}_lengths"] = _all(problem, length) if lengths is None else _dense(lengths)
    return arrays


def outputs(problem: Problem, spec: Spec) -> dict[str, Array]:
    """Return new arrays for what the graph writes."""
    xp, dtypes = problem.xp, {"output": problem.query.dtype, "stats": problem.xp.float32}
    shapes = spec.outputs.items()
    return {name: xp.empty(shape, dtype=dtypes[name], device=device(problem.query)) for name, shape in shapes}


def _all(problem: Problem, length: int) -> Array:
    """Return the full length for each batch item, (B,)."""
    xp = problem.xp
    return xp.full((math.prod(problem.batch),), length, dtype=xp.int32, device=device(problem.query))


def bias_shape(problem: Problem) -> tuple[int, int, int, int] | None:
    """Return (B or 1, H or 1, Sq, Sk) of all that is added or excluded by arrays."""
    arrays = [*problem.addends, *(rule._as_array for rule in problem.rules if rule._as_array is not None)]
    if not arrays:
        return None
    shape = tuple(problem.xp.broadcast_arrays(*arrays)[0].shape)
    shape = (1,) * (problem.ndim - len(shape)) + shape
    n = len(problem.batch)
    items = math.prod(problem.batch) if math.prod(shape[:n]) > 1 else 1
    return items, math.prod(shape[n:-2]), problem.query.shape[-2], problem.key.shape[-2]


def _bias(problem: Problem, rules: tuple[Mask, ...], shape: tuple[int, ...]) -> Array:
    """Return additions and exclusions in one array of the dtype of the query."""
    xp, dtype = problem.xp, problem.query.dtype
    keep, total = allowed(problem, tuple(rule for rule in rules if rule._as_array is not None)), added(problem)
    if total is None:
        total = xp.zeros((1, 1), dtype=dtype, device=device(problem.query))
    if keep is not None:
        total = xp.where(keep, total, -math.inf)
    batch = problem.batch if shape[0] > 1 else (1,) * len(problem.batch)
    heads = shape[1:2] if problem.heads is not None else ()
    return xp.reshape(xp.broadcast_to(as_dtype(xp, total, dtype), (*batch, *heads, *shape[2:])), shape)


def layout(a: Array, *, is_new: bool = False) -> Layout:
    """Return the layout of an array (B, H, S, D), or of its copy where one will be made."""
    own = Layout(tuple(a.shape), tuple(stride // a.itemsize for stride in a.strides))
    return own.normal if _is_readable(a) and not is_new else own.dense


def _laid_out(a: Array, expected: Layout) -> Array:
    return a if _is_readable(a) and layout(a) == expected else a.copy()


def _is_readable(a: Array) -> bool:
    """Whether the kernels can load whole words along the last axis, and no axis is broadcast by a stride of 0."""
    outer = [stride for n, stride in zip(a.shape[:-1], a.strides[:-1], strict=True) if n > 1]
    return a.strides[-1] == a.itemsize and all(n > 0 and n % _WORD == 0 for n in [*outer, address(a)])


def _dense(a: Array) -> Array:
    return a if a.flags.c_contiguous else a.copy()


def address(a: Array) -> int:
    """Return the address of an array in the memory of its GPU."""
    return int(a.data.ptr)
