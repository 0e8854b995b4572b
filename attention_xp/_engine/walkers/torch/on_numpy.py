"""Problems of torch with tensors on the CPU: NumPy's walker computes them, on the same memory and without copies.

It is one to three times as fast as Python loops over torch's operations, most of all where rules exclude much. The
loops remain for other devices, for calls that torch traces or records, for functions and biases of the user, and
for small problems, which fit into one tile of all heads.

Tensors in 16 bits are the exception: NumPy has no bfloat16, and converts float16 a number at a time. Each of them is widened
once, as a whole (`in_16_bits`), which takes twice their memory while the call lasts and hardly any time; tile by tile, keys
would be widened once for every block of rows. What comes out is float32, and is rounded once at the end.
"""

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from attention_xp._backend.dtypes import NARROW, dtype_name
from attention_xp._backend.libraries import is_numpy
from attention_xp._engine.plan.borders import formula_is_faster
from attention_xp._engine.plan.host import is_for_numpy
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.walkers.torch.in_16_bits import widened
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._typing import Array

__all__ = ["backward", "few_rows", "forward", "seen_by_numpy"]

_READABLE = {"bool", "bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"}


def forward(problem: Problem) -> tuple[Array, Array] | None:
    """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq), ``None`` where NumPy cannot read the problem."""
    here = _views(problem, ())
    if here is None:
        return None
    from attention_xp._engine.walkers.numpy.forward import forward as on_threads  # noqa: PLC0415  # imports NumPy

    with _silence():
        return _given_back(on_threads(here[0], lse=True, threads=_threads()))  # type: ignore[no-any-return]


def backward(problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Gradients | None:
    """Return the gradients in the shapes of the problem, ``None`` where NumPy cannot read the problem."""
    here = _views(problem, tuple(known))
    if here is None:
        return None
    from attention_xp._engine.walkers.numpy.backward import backward as on_threads  # noqa: PLC0415  # imports NumPy

    with _silence():
        return Gradients(*map(_given_back, on_threads(here[0], Known(*here[1]), wanted, threads=_threads())))


def few_rows(problem: Problem, wanted: Wanted) -> Attended | None:
    """Compute few rows on many keys that need no gradients, ``None`` where the formula of torch's operations is as fast, or NumPy cannot read it."""
    here = _as_numpy(problem, ())
    if here is None:
        return None
    from attention_xp._engine.walkers.numpy import at_once  # noqa: PLC0415  # imports NumPy

    if not at_once.are_compiled(here[0]):
        return None
    with _silence():
        found = at_once.attend(here[0], wanted, threads=_threads())
        return Attended(*map(_given_back, found))


def seen_by_numpy(problem: Problem) -> Problem | None:
    """Return a problem as NumPy's walker computes it, ``None`` where NumPy cannot read it; gradients are not followed."""
    with sys.modules["torch"].no_grad():
        here = _views(problem, ())
    return None if here is None else here[0]


def _views(problem: Problem, others: tuple[Array | None, ...]) -> tuple[Problem, tuple[Array | None, ...]] | None:
    """Return a problem and further tensors as views of NumPy, ``None`` where that cannot be."""
    if not is_for_numpy(problem) or formula_is_faster(problem):
        return None
    return _as_numpy(problem, others)


def _as_numpy(problem: Problem, others: tuple[Array | None, ...]) -> tuple[Problem, tuple[Array | None, ...]] | None:
    kept = dataclasses.replace(problem, xp=None, dtype=None, rules=())
    template, arrays = freeze((kept, others))
    rules = [freeze(rule) for rule in problem.rules]
    if not all(map(_is_readable, [*arrays, *(array for _, some in rules for array in some)])):
        return None
    import array_api_compat.numpy as xp  # noqa: PLC0415

    found, found_others = thaw(template, _seen(arrays))
    seen = tuple(
        # A mask with arrays of NumPy stays the same object, for it keeps summaries of these arrays.
        rule if all(map(is_numpy, some)) else thaw(of_rule, _seen(some))
        for rule, (of_rule, some) in zip(problem.rules, rules, strict=True)
    )
    dtype = getattr(xp, dtype_name(problem.dtype))
    return dataclasses.replace(found, xp=xp, dtype=dtype, rules=seen), found_others


def _is_readable(array: Array) -> bool:
    """Whether NumPy can read an array, and torch does not record what is done with it."""
    if is_numpy(array):
        return True
    torch: Any = sys.modules["torch"]
    return (
        type(array) in (torch.Tensor, torch.nn.Parameter)
        and array.device.type == "cpu"
        and array.layout == torch.strided
        and dtype_name(array.dtype) in _READABLE
        and not array.is_neg()
        and not (array.requires_grad and torch.is_grad_enabled())
    )


def _seen(arrays: Sequence[Array]) -> list[Array]:
    """Return arrays as NumPy reads them: in place, or widened where they have 16 bits."""
    tensors = [a if is_numpy(a) else a.detach() for a in arrays]
    are_narrow = [dtype_name(a.dtype) in NARROW and not is_numpy(a) for a in tensors]
    wide = iter(widened([a for a, is_narrow in zip(tensors, are_narrow, strict=True) if is_narrow]))
    seen = [next(wide) if is_narrow else a for a, is_narrow in zip(tensors, are_narrow, strict=True)]
    return [a if is_numpy(a) else a.numpy() for a in seen]


def _given_back(result: Any) -> Any:
    """Return arrays of NumPy, or nested tuples of them, as tensors in the same memory."""
    if isinstance(result, tuple):
        return tuple(map(_given_back, result))
    return None if result is None else sys.modules["torch"].from_numpy(result)


def _silence() -> AbstractContextManager[None]:
    """Return a context in which NumPy does not warn of infinities and NaN, as torch does not."""
    import numpy as np  # noqa: PLC0415

    return np.errstate(all="ignore")


def _threads() -> int:
    return int(sys.modules["torch"].get_num_threads())
