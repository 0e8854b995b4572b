"""torch's kernel for CuPy arrays: the same memory on the same stream, through DLPack.

It needs a PyTorch that was built for CUDA.
"""

import dataclasses
import sys
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from attention_xp._backend.autocast import outside_autocast
from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.libraries import creation_namespace
from attention_xp._engine.kernels.fused import _torch
from attention_xp._engine.plan.borders import sdpa_is_faster
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._typing import Array

__all__ = ["attend", "is_worthwhile", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return why torch's kernel cannot compute the problem, or that there is no torch."""
    if not _has_torch():
        return "CuPy arrays are handed to PyTorch's kernel, and no PyTorch with CUDA is installed"
    if _torch.makes_array(problem):  # not tried on a GPU; and a function of the user expects arrays of CuPy
        return "torch's scaled_dot_product_attention would need this mask as an array of (Sq, Sk)"
    return _torch.refusal(problem, wanted)


def is_worthwhile(problem: Problem) -> bool:
    """Return whether the kernel is faster than tiles, as for tensors; the first call imports torch."""
    return sdpa_is_faster(problem) and _has_torch()


@cache
def _has_torch() -> bool:
    """Whether there is a torch that can reach the memory of a GPU."""
    return find_spec("torch") is not None and bool(import_module("torch").cuda.is_available())


def attend(problem: Problem, wanted: Wanted) -> Attended:  # noqa: ARG001
    """Let torch compute on the current stream, without autocast, and return its output as a CuPy array."""
    with _current_stream(problem.query):
        converted = _for_torch(problem)
        with outside_autocast(converted.xp, converted.query):
            _, output = _torch.raw_and_output(converted)
        return Attended(problem.xp.from_dlpack(output), None, None)


def _current_stream(query: Array) -> AbstractContextManager[Any]:
    """Make CuPy's current stream the one of torch, so that no synchronisation is needed."""
    torch, number = sys.modules["torch"], query.device.id
    pointer = sys.modules["cupy"].cuda.get_current_stream(number).ptr
    # From pointer 0, the default stream, torch would make another stream, which is not synchronised with it.
    default, external = torch.cuda.default_stream, torch.cuda.ExternalStream
    stream = external(pointer, device=number) if pointer else default(number)
    current: AbstractContextManager[Any] = torch.cuda.stream(stream)
    return current


def _for_torch(problem: Problem) -> Problem:
    """Return the same problem in tensors; NumPy arrays that a mask may hold remain."""
    xp = creation_namespace(import_module("torch"))
    template, arrays = freeze(problem)
    kind = type(problem.query)
    tensors = [_tensor(xp, a) if isinstance(a, kind) else a for a in arrays]
    converted: Problem = thaw(template, tensors)
    return dataclasses.replace(converted, xp=xp, dtype=getattr(xp, dtype_name(problem.dtype)))


def _tensor(xp: Any, array: Array) -> Array:
    """Return a tensor on the memory of an array; booleans are exchanged as bytes, which every version supports."""
    if dtype_name(array.dtype) == "bool":
        return xp.from_dlpack(array.view("uint8")).view(xp.bool)
    return xp.from_dlpack(array)
