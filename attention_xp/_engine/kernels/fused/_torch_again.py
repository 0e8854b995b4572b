"""Second derivatives through torch's kernels, which have first derivatives only: these come from the formula."""

import dataclasses
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointError

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.batched import mapped_over_batches
from attention_xp._engine.kernels.gradients import backward
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.tile.formula import attend_at_once
from attention_xp._typing import Array

__all__ = ["follow_gradients"]

_Gradients = tuple[Array | None, ...]


def follow_gradients(output: Array) -> None:
    """Make the gradients of a kernel's output differentiable.

    The hooks are the same functions for all calls and keep no arrays: the autograd node of the kernel keeps what is needed,
    for as long as it needs it itself. An autograd function of our own around the kernel would take four times as long.
    """
    node = output.grad_fn
    if not _is_kernel(node):  # the output may be a slice of what the kernel computed, with padded heads
        node = node.next_functions[0][0]
        if not _is_kernel(node):
            return  # torch computed the formula, which has all derivatives
    # As `register_hook` does it with the hooks of the output, but with those of one tensor for all calls: to make a
    # dictionary of hooks, and a handle to remove one, takes longer than all else.
    node._register_hook_dict(_HOOKED)


def _is_kernel(node: Any) -> bool:
    return type(node).__name__.startswith("ScaledDotProduct")


def _before_gradients(gradient: Array) -> None:  # noqa: ARG001  # as torch calls it
    """Ask for the gradients of a kernel where these are to be differentiated; mostly they are not."""
    if torch.is_grad_enabled():
        node = torch._C._current_autograd_node()
        if _followed not in node.metadata:
            node.metadata[_followed] = node.register_hook(_followed)


_HOOKED = torch.zeros((), device="cpu", requires_grad=True)  # its hooks are for the first output of any node
_HOOKED.register_hook(_before_gradients)


def _followed(found: _Gradients, given: _Gradients) -> _Gradients | None:
    """Compute the gradients once more, recorded by autograd, where these are to be differentiated (``create_graph=True``)."""
    gradient = given[0]
    if gradient is None or not torch.is_grad_enabled():
        return None
    arrays, problem = _call(torch._C._current_autograd_node())
    problem, context = sheltered(problem)
    with context:
        result = attend_at_once(problem, Wanted(lse=True))
    wanted = tuple(any(one is not None for one in found[3:]) for _ in problem.addends)  # a mask, or none

    def again(gradient: Array) -> _Gradients:
        anew = backward(problem, result.output, result.lse, gradient, wanted=wanted, whole=True)
        every = (anew.query, anew.key, anew.value, *anew.addends, None)
        return tuple(
            None if one is None or new is None else new.to(array.dtype)
            for one, new, array in zip(found, every, arrays, strict=False)
        )

    return tuple(mapped_over_batches(again, gradient))


def _call(node: Any) -> tuple[list[Array], Problem]:
    """Return the arguments of a kernel, and the problem that they state."""
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
