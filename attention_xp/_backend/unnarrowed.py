"""torch's namespace with a product that autocast does not narrow, neither forward nor in any derivative."""

from typing import Any

import array_api_compat.torch as xp
import torch

from attention_xp._backend.batched import mapped_over_batches
from attention_xp._typing import Array

__all__ = ["NAMESPACE"]


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """``a @ b``: products are the only operations used here that autocast narrows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Array, b: Array) -> Array:
        """(..., m, n) @ (..., n, k) -> (..., m, k)."""
        with torch.autocast(a.device.type, enabled=False):
            return torch.matmul(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Array, Array], output: Array) -> None:  # noqa: ARG004
        """Keep the factors."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Array) -> tuple[Array | None, ...]:
        """Return the gradients of the factors, by products of the same kind."""
        a, b = ctx.saved_tensors

        def gradients(gradient: Array) -> tuple[Array | None, Array | None]:
            of_a = _Product.apply(gradient, b.mT).sum_to_size(a.shape) if ctx.needs_input_grad[0] else None
            of_b = _Product.apply(a.mT, gradient).sum_to_size(b.shape) if ctx.needs_input_grad[1] else None
            return of_a, of_b

        return tuple(mapped_over_batches(gradients, gradient))

    @staticmethod
    def jvp(ctx: Any, by_a: Array | None, by_b: Array | None) -> Array:
        """Return the tangent of the product."""
        a, b = ctx.saved_tensors
        parts = [
            *([] if by_a is None else [_Product.apply(by_a, b)]),
            *([] if by_b is None else [_Product.apply(a, by_b)]),
        ]
        return sum(parts[1:], start=parts[0])


class _Unnarrowed:
    """The namespace with another product."""

    __name__ = xp.__name__
    matmul = staticmethod(_Product.apply)

    def __getattr__(self, name: str) -> Any:
        return getattr(xp, name)


NAMESPACE = _Unnarrowed()
