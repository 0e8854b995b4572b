"""The modes and transformations of torch and JAX that a call is made in."""

import sys
from typing import Any

from attention_xp._backend.libraries import is_tensor, is_torch_namespace
from attention_xp._typing import Array, Namespace

__all__ = [
    "differentiates_again",
    "in_forward_mode",
    "is_compiling",
    "is_followed",
    "is_jit_tracing",
    "is_left_open",
    "is_mapped",
    "is_plain",
    "is_recorded",
    "is_traced",
    "is_traced_by_jax",
    "is_transformed",
    "refuse_shards",
    "shares_keys",
]


def shares_keys() -> bool:
    """Whether torch's ``context_parallel`` is active, which replaces torch's kernel by one of its own."""
    torch = sys.modules["torch"]
    kernel = torch.nn.functional.scaled_dot_product_attention
    if kernel is torch._C._nn.scaled_dot_product_attention:
        return False
    return str(getattr(kernel, "__module__", None)).startswith("torch.distributed.tensor.experimental")


def refuse_shards(xp: Namespace) -> None:
    """Refuse to compute where the keys that a call is given are not all there are."""
    if is_torch_namespace(xp) and shares_keys():
        raise ValueError(
            "inside torch's context_parallel a call has the keys of one rank, and torch's scaled_dot_product_attention alone "
            "sees those of the others: expected a call that impl='fused' takes, with no option but is_causal and scale"
        )


def is_compiling(xp: Namespace) -> bool:
    """Whether torch compiles or exports, so that sizes may be symbols."""
    return is_torch_namespace(xp) and bool(sys.modules["torch"].compiler.is_compiling())


def is_left_open(xp: Namespace, *sizes: int) -> bool:
    """Whether torch exports a program for which one of some sizes may be any number."""
    if not is_compiling(xp) or not sys.modules["torch"].compiler.is_exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true as is_sure  # noqa: PLC0415

    # A fixed size is known to be even or odd; a plain comparison would fix a symbolic one.
    return any(not is_sure(n % 2 == 0) and not is_sure(n % 2 == 1) for n in sizes)


def in_forward_mode() -> bool:
    """Whether torch may be in forward mode, for which there is no public question."""
    torch = sys.modules["torch"]
    return not torch.compiler.is_compiling() and bool(torch.autograd.forward_ad._current_level >= 0)


def is_transformed() -> bool:
    """Whether one of the transformations of ``torch.func`` is active."""
    torch = sys.modules.get("torch")
    return torch is not None and not torch.compiler.is_compiling() and _has_levels(torch)


def _has_levels(torch: Any) -> bool:
    """Whether transformations are active; not to be called while torch compiles."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def differentiates_again(*arrays: Array) -> bool:
    """Whether what ``torch.func`` differentiates is differentiated again: by another of its gradients, or by autograd."""
    if not is_transformed():
        return False
    functorch = sys.modules["torch"]._C._functorch
    kind = functorch.TransformType.Grad
    levels = [functorch.CGradInterpreterPtr(x) for x in functorch.get_interpreter_stack() if x.key() == kind]
    if len(levels) == 1 and levels[0].prevGradMode():
        return any(_innermost(functorch, a).requires_grad for a in arrays)
    return len(levels) > 1


def _innermost(functorch: Any, a: Array) -> Array:
    """Return the tensor inside all wrappers of ``torch.func``."""
    while functorch.is_functorch_wrapped_tensor(a):
        a = functorch.get_unwrapped(a)
    return a


def is_traced() -> bool:
    """Whether torch compiles, traces, or is inside a transformation: sizes may be symbols, and a tensor may be a wrapper."""
    torch = sys.modules.get("torch")
    if torch is None or torch.compiler.is_compiling():
        return torch is not None
    return _has_levels(torch) or bool(torch.jit.is_tracing())


def is_plain() -> bool:
    """Whether torch is in no special mode, so that a call depends on its arguments alone; JAX's modes show in arrays."""
    torch = sys.modules.get("torch")
    if torch is None:
        return True
    if torch.compiler.is_compiling() or _has_levels(torch) or torch.jit.is_tracing() or _is_observed(torch):
        return False
    return bool(torch.autograd.forward_ad._current_level < 0)


def is_jit_tracing() -> bool:
    """Whether ``torch.jit`` traces the call; it does not support autograd functions."""
    torch = sys.modules["torch"]
    return not torch.compiler.is_compiling() and bool(torch.jit.is_tracing())


def is_recorded() -> bool:
    """Whether torch traces the call, or a dispatch mode observes its operations."""
    return is_traced() or _is_observed(sys.modules["torch"])


def _is_observed(torch: Any) -> bool:
    """Whether a dispatch mode observes operations."""
    return bool(torch._C._len_torch_dispatch_stack() > 0)


def is_followed(xp: Namespace, result: Array) -> bool:
    """Whether torch, or a subclass of its tensors, records what is done with a result: it must not be written in place."""
    if not is_torch_namespace(xp):
        return False
    return type(result) is not sys.modules["torch"].Tensor or bool(result.requires_grad) or is_traced()


def is_traced_by_jax() -> bool:
    """Whether JAX is tracing, whatever the arrays, also for `grad` and `vmap`; there is no public question."""
    return not sys.modules["jax"]._src.core.trace_state_clean()


def is_mapped(*arrays: Array) -> bool:
    """Whether one of some arrays of torch or JAX stands for a batch of arrays inside `vmap`."""
    if not is_tensor(arrays[0]):
        return any(type(a).__name__ == "BatchTracer" for a in arrays)  # there is no public question
    torch = sys.modules["torch"]
    functorch = torch._C._functorch  # nor is there here
    if torch.compiler.is_compiling() or not _has_levels(torch):
        return False
    return any(_is_batched(functorch, a) for a in arrays)


def _is_batched(functorch: Any, a: Array) -> bool:
    """Whether one of the wrappers of a tensor, such as those of a gradient inside `vmap`, is that of a batch."""
    while functorch.is_functorch_wrapped_tensor(a):
        if functorch.is_batchedtensor(a):
            return True
        a = functorch.get_unwrapped(a)
    return False
