"""Which mode or transformation of torch and JAX a call is made inside."""

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
    """Whether torch's ``context_parallel`` is at work, which puts a kernel of its own in the place of torch's."""
    kernel = sys.modules["torch"].nn.functional.scaled_dot_product_attention
    return str(getattr(kernel, "__module__", None)).startswith("torch.distributed.tensor.experimental")


def refuse_shards(xp: Namespace) -> None:
    """Refuse to compute where the keys that a call is given are not all there are."""
    if is_torch_namespace(xp) and shares_keys():
        raise ValueError(
            "inside torch's context_parallel a call has the keys of one rank, and torch's scaled_dot_product_attention alone "
            "sees those of the others: expected a call that impl='fused' takes, with no option but is_causal and scale"
        )


def is_compiling(xp: Namespace) -> bool:
    """Whether torch compiles or exports, so that sizes may be none."""
    return is_torch_namespace(xp) and bool(sys.modules["torch"].compiler.is_compiling())


def is_left_open(xp: Namespace, *sizes: int) -> bool:
    """Whether torch exports a program for which one of some sizes may be any number."""
    if not is_compiling(xp) or not sys.modules["torch"].compiler.is_exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true as is_sure  # noqa: PLC0415

    # What is written into the graph as a number is even or odd; of others this may not be asked, or no others will do.
    return any(not is_sure(n % 2 == 0) and not is_sure(n % 2 == 1) for n in sizes)


def in_forward_mode() -> bool:
    """Whether torch may be computing tangents, of which there is no public question for a function at large."""
    torch = sys.modules["torch"]
    return not torch.compiler.is_compiling() and bool(torch.autograd.forward_ad._current_level >= 0)


def is_transformed() -> bool:
    """Whether one of the transformations of ``torch.func`` is at work."""
    torch = sys.modules.get("torch")
    return torch is not None and not torch.compiler.is_compiling() and _has_levels(torch)


def _has_levels(torch: Any) -> bool:
    """Whether transformations are at work; no question while torch compiles."""
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
    """Return what a tensor was before it was transformed."""
    while functorch.is_functorch_wrapped_tensor(a):
        a = functorch.get_unwrapped(a)
    return a


def is_traced() -> bool:
    """Whether torch is compiling, tracing, mapping or differentiating: sizes may be none, a tensor may stand for others."""
    torch = sys.modules.get("torch")
    if torch is None or torch.compiler.is_compiling():
        return torch is not None
    return _has_levels(torch) or bool(torch.jit.is_tracing())


def is_plain() -> bool:
    """Whether torch has no mode in which a call is more than it seems; JAX shows its own in the arrays."""
    return not is_traced() and ("torch" not in sys.modules or not in_forward_mode())


def is_jit_tracing() -> bool:
    """Whether ``torch.jit`` follows the call, which it cannot into functions with a derivative of their own."""
    torch = sys.modules["torch"]
    return not torch.compiler.is_compiling() and bool(torch.jit.is_tracing())


def is_recorded() -> bool:
    """Whether what torch computes is traced or written down, so that its operations are to be seen."""
    return is_traced() or bool(sys.modules["torch"]._C._len_torch_dispatch_stack() > 0)


def is_followed(xp: Namespace, result: Array) -> bool:
    """Whether torch follows what becomes of a result, so that it must not be written into another array.

    So does a subclass of its tensors, in a way of its own.
    """
    if not is_torch_namespace(xp):
        return False
    return type(result) is not sys.modules["torch"].Tensor or bool(result.requires_grad) or is_traced()


def is_traced_by_jax() -> bool:
    """Whether JAX traces, differentiates or maps the code at hand, whatever the arrays; there is no public question."""
    return not sys.modules["jax"]._src.core.trace_state_clean()


def is_mapped(*arrays: Array) -> bool:
    """Whether one of some arrays of torch or JAX stands for a batch of arrays inside `vmap`."""
    if not is_tensor(arrays[0]):
        return any(type(a).__name__ == "BatchTracer" for a in arrays)  # there is no public question
    torch = sys.modules["torch"]
    functorch = torch._C._functorch  # nor is there here
    if torch.compiler.is_compiling() or not _has_levels(torch):
        return False
    return any(map(functorch.is_batchedtensor, arrays))
