"""Differentiable exchanges between ranks."""

import math
from collections.abc import Callable
from typing import Any

import torch

from attention_xp._typing import Array
from attention_xp.distributed._torch.messages import Channel, Ranks

__all__ = ["by_chunks", "exchange", "gathered", "once", "shared", "tied"]


class _Exchange(torch.autograd.Function):  # type: ignore[misc]
    """Give each rank its part; the gradients go back the same way."""

    @staticmethod
    def forward(ctx: Any, parts: Array, channel: Channel) -> Array:
        """Return the parts (n, ...) that all ranks have for this one."""
        ctx.channel = channel
        return channel.exchanged(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Array) -> tuple[Array, None]:
        """Return the gradients of the parts; they are exchanged by the same function, so that they have gradients as well."""
        return _Exchange.apply(gradient, ctx.channel.back()), None


class _Rejoined(torch.autograd.Function):  # type: ignore[misc]
    """Gather what each rank has, where all ranks go on alike: each has the whole gradient already."""

    @staticmethod
    def forward(ctx: Any, x: Array, channel: Channel) -> Array:
        """Return what all ranks have, (n, ...)."""
        ctx.rank = channel.ranks.rank
        return channel.exchanged([x] * channel.ranks.n)

    @staticmethod
    def backward(ctx: Any, gradient: Array) -> tuple[Array, None]:
        """Return this rank's part."""
        return gradient[ctx.rank], None


class _Shared(torch.autograd.Function):  # type: ignore[misc]
    """A tensor that all ranks hold alike; its gradients are summed over them."""

    @staticmethod
    def forward(ctx: Any, x: Array, channels: tuple[Channel, Channel]) -> Array:
        """Return the tensor."""
        ctx.channels = channels
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Array) -> tuple[Array, None]:
        """Return the sum of the gradients of all ranks."""
        rows = _by_chunks(gradient.reshape(-1, 1), lambda parts: parts.sum(0), ctx.channels)
        return rows.reshape(gradient.shape), None


class _Tied(torch.autograd.Function):  # type: ignore[misc]
    """Results, and tensors that have a gradient wherever these have one."""

    @staticmethod
    def forward(ctx: Any, output: Array, lse: Array, *tensors: Array) -> tuple[Array, Array]:
        """Return the results."""
        ctx.save_for_backward(*tensors)
        return output.view_as(output), lse.view_as(lse)

    @staticmethod
    def backward(ctx: Any, *gradients: Array) -> tuple[Array, ...]:
        """Return the gradients of the results, and zeros."""
        return *gradients, *map(torch.zeros_like, ctx.saved_tensors)


class _Once(torch.autograd.Function):  # type: ignore[misc]
    """Tensors whose gradients have no gradients."""

    @staticmethod
    def forward(ctx: Any, function: str, *tensors: Array) -> tuple[Array, ...]:
        """Return the tensors."""
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Array) -> tuple[Array | None, ...]:
        """Return the gradients, which depend on the tensors in a way that is refused."""
        return None, *_Refused.apply(ctx.function, *gradients, *ctx.saved_tensors)


class _Refused(torch.autograd.Function):  # type: ignore[misc]
    """Gradients of some tensors, and these."""

    @staticmethod
    def forward(ctx: Any, function: str, *tensors: Array) -> tuple[Array, ...]:
        """Return the gradients."""
        ctx.function = function
        return tuple(x.view_as(x) for x in tensors[: len(tensors) // 2])

    @staticmethod
    def backward(ctx: Any, *_: Array) -> tuple[Array, ...]:
        """Raise an error."""
        raise RuntimeError(
            f"{ctx.function} on these ranks has no gradients of gradients: take gathered_attention, or ulysses_attention "
            "along one axis, which have them"
        )


def once(arrays: list[Any], function: str) -> list[Any]:
    """Return arrays of which those that have gradients have no second ones."""
    wanted = [isinstance(x, torch.Tensor) and x.requires_grad and torch.is_grad_enabled() for x in arrays]
    if not any(wanted):
        return arrays
    marked = iter(_Once.apply(function, *(x for x, is_wanted in zip(arrays, wanted, strict=True) if is_wanted)))
    return [next(marked) if is_wanted else x for x, is_wanted in zip(arrays, wanted, strict=True)]


def tied(output: Array, lse: Array, tensors: list[Array]) -> tuple[Array, Array]:
    """Return results from which the gradients of some tensors are asked for on all ranks, used or not.

    A rank may have no use for a tensor that all hold alike; the others wait for its share all the same.
    """
    return _Tied.apply(output, lse, *tensors) if tensors else (output, lse)


def exchange(parts: Array, ranks: Ranks, purpose: str) -> Array:
    """Send part i of (n, ...) to rank i, and return the parts (n, ...) that came from all ranks."""
    return _Exchange.apply(parts, ranks.channel(purpose))


def gathered(x: Array, ranks: Ranks, purpose: str) -> Array:
    """Return what all ranks have, (n, ...), where each goes on in its own way: gradients are summed over ranks."""
    return exchange(x.expand(ranks.n, *x.shape), ranks, purpose)


def shared(x: Any, ranks: Ranks, name: str) -> Any:
    """Return a tensor that all ranks hold alike, so that each has the gradient of one process."""
    if not isinstance(x, torch.Tensor) or not x.requires_grad or not torch.is_grad_enabled():
        return x
    purpose = f"summing gradients of {name}"
    return _Shared.apply(x, (ranks.channel(purpose), ranks.channel(purpose)))


def by_chunks(rows: Array, combined: Callable[[Array], Array], ranks: Ranks, purpose: str) -> Array:
    """Combine rows (R, ...) of all ranks: each rank combines some, (n, R / n, ...) -> (R / n, ...), and all get all of them.

    What is sent does not depend on the number of ranks: twice the rows.
    """
    return _by_chunks(rows, combined, (ranks.channel(purpose), ranks.channel(purpose)))


def _by_chunks(rows: Array, combined: Callable[[Array], Array], channels: tuple[Channel, Channel]) -> Array:
    n = channels[0].ranks.n
    count = math.ceil(rows.shape[0] / n)
    padded = torch.nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, count * n - rows.shape[0]))
    arrived = _Exchange.apply(padded.reshape(n, count, *rows.shape[1:]), channels[0])
    return _Rejoined.apply(combined(arrived), channels[1]).flatten(0, 1)[: rows.shape[0]]
