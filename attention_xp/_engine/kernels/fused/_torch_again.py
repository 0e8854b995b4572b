"""Derivatives of derivatives through torch's kernels, which have the first alone: the others are those of the formula."""

import dataclasses
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointError

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.batched import mapped_over_batches
from attention_xp._engine.kernels import dense
from attention_xp._engine.kernels.gradients import backward
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._typing import Array

__all__ = ["follow_slopes"]

_Slopes = tuple[Array | None, ...]


def follow_slopes(output: Array) -> None:
    """Let the gradients of what a kernel of torch has given be differentiated themselves.

    The hook is one function for all calls and holds nothing: what it needs is kept by the node of the kernel, and for
    as long as that wants it. A function of our own around the kernel would take four times as long.
    """
    node = output.grad_fn
    if not _is_kernel(node):  # its output may be a part of what it computed, of wider heads
        node = node.next_functions[0][0]
    if _is_kernel(node):  # or else it is the formula, of which there are all derivatives
        node.register_hook(_followed)


def _is_kernel(node: Any) -> bool:
    return node is not None and node.name().startswith("ScaledDotProduct")


def _followed(slopes: _Slopes, gradients: _Slopes) -> _Slopes | None:
    """Return the slopes once more where the library follows how they come about, as under ``create_graph=True``."""
    gradient = gradients[0]
    if gradient is None or not torch.is_grad_enabled():
        return None
    arrays, problem = _call(torch._C._current_autograd_node())
    problem, context = sheltered(problem)
    with context:
        result = dense.attend(problem, Wanted(lse=True))
    wanted = tuple(any(slope is not None for slope in slopes[3:]) for _ in problem.addends)  # a mask, or none

    def again(gradient: Array) -> _Slopes:
        found = backward(problem, result.output, result.lse, gradient, wanted=wanted, whole=True)
        every = (found.query, found.key, found.value, *found.addends, None)
        return tuple(
            None if slope is None or new is None else new.to(array.dtype)
            for slope, new, array in zip(slopes, every, arrays, strict=False)
        )

    return tuple(mapped_over_batches(again, gradient))


def _call(node: Any) -> tuple[list[Array], Problem]:
    """Return what a kernel was given, and the same as a problem for the formula."""
    kinds = ("query", "key", "value", "attn_mask", "attn_bias")
    try:
        arrays = [getattr(node, f"_saved_{kind}") for kind in kinds if hasattr(type(node), f"_saved_{kind}")]
    except CheckpointError as error:
        raise RuntimeError(
            "inside a checkpoint, torch's scaled_dot_product_attention has no derivatives of derivatives; "
            "impl='dense' and impl='tiled' have"
        ) from error
    query, key, value, mask = (*arrays, None)[:4]
    options: Any = {"is_causal": node._saved_is_causal, "scale": node._saved_scale, "query_offset": 0}
    problem = Problem.of(query, key, value, mask, 0.0, options)
    return arrays, dataclasses.replace(problem, query=query.to(problem.dtype))  # no result is rounded on the way
