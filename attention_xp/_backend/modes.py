"""Which mode or transformation of torch and JAX a call is made inside."""

import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

from attention_xp._backend.libraries import is_tensor, is_torch_namespace
from attention_xp._typing import Array, Namespace

__all__ = [
    "NOTHING",
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
    "may_differ",
    "outside_autocast",
    "refuse_shards",
    "shares_keys",
    "sheltered",
    "unnarrowed",
]

_SHELTERED: ContextVar[bool] = ContextVar("sheltered", default=False)  # by one of our own contexts
NOTHING: AbstractContextManager[Any] = nullcontext()


def outside_autocast(xp: Namespace, array: Array) -> AbstractContextManager[Any]:
    """Return a context in which torch narrows no product by itself."""
    if is_torch_namespace(xp) and _narrows(array):
        return sys.modules["torch"].autocast(array.device.type, enabled=False)  # type: ignore[no-any-return]
    return NOTHING


def _narrows(array: Array) -> bool:
    """Whether torch narrows products of a tensor."""
    kind = array.device.type
    return kind != "meta" and bool(sys.modules["torch"].is_autocast_enabled(kind))


def may_differ(xp: Namespace, a: Array, b: Array) -> bool:
    """Whether dtypes of two arrays may differ: under autocast, which makes one dtype of all but float64."""
    if not is_torch_namespace(xp) or not _narrows(a):
        return False
    return bool(max(a.dtype.itemsize, b.dtype.itemsize) <= 4)


def sheltered(problem: Any) -> tuple[Any, AbstractContextManager[Any]]:
    """Return a context in which torch narrows no product of a problem, and the problem in the terms for it.

    ``backward()`` may be called while torch narrows, too, when the products for the gradients come to be.
    """
    xp, context = unnarrowed(problem.xp, problem.query)
    return problem if xp is problem.xp else dataclasses.replace(problem, xp=xp), context


def unnarrowed(xp: Namespace, array: Array) -> tuple[Namespace, AbstractContextManager[Any]]:
    """Return a context in which torch narrows no product, and the namespace for it."""
    if not is_torch_namespace(xp) or is_compiling(xp):
        return xp, outside_autocast(xp, array)
    if not _narrows(array) and not _SHELTERED.get():
        return xp, NOTHING
    from attention_xp._backend.unnarrowed import NAMESPACE  # noqa: PLC0415  # imports torch

    return NAMESPACE, _Shelter(array.device.type)


class _Shelter:
    """A context without autocast, in which is known that there is autocast around it."""

    def __init__(self, kind: str) -> None:
        self._inner = sys.modules["torch"].autocast(kind, enabled=False)

    def __enter__(self) -> None:
        self._inner.__enter__()
        self._token = _SHELTERED.set(True)

    def __exit__(self, *error: object) -> None:
        _SHELTERED.reset(self._token)
        self._inner.__exit__(*error)


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
