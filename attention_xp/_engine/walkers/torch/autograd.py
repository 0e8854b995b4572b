"""torch's forward pass, differentiable: an autograd function whose backward pass is the analytic one.

In forward mode, and for derivatives by tensors that functions have captured, torch records the loop instead.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from attention_xp._backend.batched import mapped_over_batches
from attention_xp._backend.libraries import is_tensor
from attention_xp._backend.modes import in_forward_mode, is_jit_tracing, is_traced, is_transformed
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients
from attention_xp._engine.tile.pullback import pulled_back
from attention_xp._engine.walkers.portable.forward import followed
from attention_xp._engine.walkers.torch import unrecorded
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias

__all__ = ["Tiled", "forward"]


def forward(problem: Problem, *, lse: bool = True) -> tuple[Array, Array]:  # noqa: ARG001  # it costs nothing
    """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq), differentiable in memory linear in the lengths.

    The autograd function does not know the tensors that a function of the user, or a bias of their own class, has captured.
    Where these require gradients or may be mapped, and in forward mode, torch records the loop instead. Blocks of rows are checkpointed: each is computed
    once more when its gradients are wanted.
    """
    if (
        problem.has_foreign_bias
        or (problem.has_bias_rule and is_traced())
        or is_jit_tracing()
        or in_forward_mode()
        or (problem.has_foreign_code() and (is_transformed() or _captures(problem)))
    ):
        return followed(problem, _recomputed if _can_recompute() else None)
    rest, arrays = _split(problem)
    if not torch.compiler.is_compiling():
        return Tiled.apply(rest, *arrays)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and any(a.requires_grad for a in arrays):
        return Tiled.apply(rest, *_distinct(arrays))  # type: ignore[no-any-return]
    return unrecorded.forward(problem)  # Dynamo does not support the function where nothing requires gradients


_TAKEN: Any = "taken out"  # in the place of an array


@dataclasses.dataclass(frozen=True)
class _Rest:
    """A problem without the tensors that it is differentiated by."""

    problem: Any  # or what `freeze` made of it
    addends: int
    kept: tuple[Any, ...]  # of each part that it is differentiated by: what a rule is without its tensors, or None
    counts: tuple[int, ...]  # of the tensors of each part

    def complete(self, arrays: Any) -> Problem:
        """Return the problem with these tensors."""
        rest, n = self.problem, sum(self.counts)
        problem: Problem = rest if isinstance(rest, Problem) else thaw(rest, arrays[n:])
        tensors = self.of_parts(arrays)
        return problem.with_differentiated(
            [
                some[0] if kept is None else _put_together(kept, some)
                for kept, some in zip(self.kept, tensors, strict=True)
            ]
        )

    def of_parts(self, things: Any) -> list[Any]:
        """Return things, of which there is one for each tensor, part by part."""
        found, start = [], 0
        for count in self.counts:
            found.append(things[start : start + count])
            start += count
        return found


def _split(problem: Problem) -> tuple[_Rest, list[Array]]:
    """Return the rest of a problem, and its tensors: first those it is differentiated by, then others that may be mapped."""
    parts = problem.differentiated
    rest: Any = problem.with_differentiated([_TAKEN] * len(parts))
    apart = [_taken_apart(part) if isinstance(part, Bias) else (None, [part]) for part in parts]
    arrays = [array for _, some in apart for array in some]
    kept, counts = tuple(kept for kept, _ in apart), tuple(len(some) for _, some in apart)
    if is_transformed():
        rest, others = freeze(rest)
        arrays += others
    return _Rest(rest, len(problem.addends), kept, counts), arrays


def _taken_apart(bias: Bias) -> tuple[Any, list[Array]]:
    """Return a rule without its tensors, and these; arrays of NumPy stay."""
    template, arrays = freeze(bias)
    return (template, [None if is_tensor(a) else a for a in arrays]), [a for a in arrays if is_tensor(a)]


def _put_together(kept: tuple[Any, list[Any]], tensors: Any) -> Bias:
    """Return a rule with other tensors."""
    template, arrays = kept
    rest = iter(tensors)
    bias: Bias = thaw(template, [next(rest) if a is None else a for a in arrays])
    return bias


def _by_tensor(problem: Problem, found: Gradients) -> list[Array | None]:
    """Return the gradients of the tensors that a problem is differentiated by, in their order."""
    gradients: list[Array | None] = []
    for part, gradient in zip(problem.differentiated, found.parts, strict=True):
        if isinstance(part, Bias):
            of_array = dict(zip(map(id, part.arrays), gradient or (), strict=False))
            gradients += [of_array.get(id(a)) for a in freeze(part)[1] if is_tensor(a)]
        else:
            gradients.append(gradient)
    return gradients


def _distinct(arrays: list[Array]) -> list[Array]:
    """Return arrays without duplicates, as in self-attention: Dynamo does not support the same tensor twice."""
    return [a.view_as(a) if any(a is b for b in arrays[:i]) else a for i, a in enumerate(arrays)]


class Tiled(torch.autograd.Function):  # type: ignore[misc]
    """The loop over tiles forward, and the one backward as its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rest: _Rest, *arrays: Array) -> tuple[Array, Array]:
        """Return output and log-sum-exp."""
        return unrecorded.forward(rest.complete(arrays))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, Array]) -> None:
        """Keep the arrays and the results."""
        ctx.rest = inputs[0]
        ctx.save_for_backward(*inputs[1:], *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_output: Array | None, grad_lse: Array | None) -> tuple[Array | None, ...]:
        """Return the gradients of all arrays."""
        *arrays, output, lse = ctx.saved_tensors
        nothing = (None,) * (1 + len(arrays))
        if grad_output is None and grad_lse is None:
            return nothing
        rest, wanted = ctx.rest, ctx.needs_input_grad[1:]
        addends = tuple(map(any, rest.of_parts(wanted)[3 : 3 + rest.addends]))

        def gradients(gradient: Array | None, grad_lse: Array | None) -> list[Array | None]:
            gradient = torch.zeros_like(output) if gradient is None else gradient
            problem = rest.complete(arrays)
            found = pulled_back(unrecorded.backward, problem, output, lse, gradient, grad_lse, wanted=addends)
            return [
                one.to(array.dtype) if one is not None and is_wanted else None
                for one, array, is_wanted in zip(_by_tensor(problem, found), arrays, wanted, strict=False)
            ]

        found = mapped_over_batches(gradients, grad_output, grad_lse)
        return (None, *found, *nothing[1 + len(found) :])


def _can_recompute() -> bool:
    """Whether blocks of rows can be checkpointed: not in a trace, nor in forward mode."""
    return torch.is_grad_enabled() and not is_traced() and not in_forward_mode()


def _recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with a checkpoint: nothing but its arguments is kept for its gradients."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _captures(problem: Problem) -> bool:
    """Whether `score_mod` has captured a tensor that requires gradients: its result does, for a score that does not."""
    if problem.score_mod is None or not torch.is_grad_enabled():
        return False
    one = (1,) * problem.ndim
    score = torch.zeros(one, dtype=problem.dtype, device=problem.query.device)
    pair = Region(problem, (0,) * problem.ndim, one)
    return bool(problem.score_mod(score, pair.b, pair.h, pair.q_idx, pair.kv_idx).requires_grad)
