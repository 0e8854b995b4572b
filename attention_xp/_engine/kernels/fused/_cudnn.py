"""cuDNN's attention for CuPy arrays of 16 bits, through its front end (``nvidia-cudnn-frontend``).

A graph describes the computation; it is built once for all calls of the same shapes, dtypes and options. Which graphs this
version of cuDNN supports on this GPU, the front end says when it builds one: no table of that is kept here.
"""

import math
import sys
import threading
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, NamedTuple, cast

from attention_xp._backend.dtypes import dtype_name
from attention_xp._engine.kernels.fused._cudnn_arrays import address, bias_shape, inputs, layout, outputs
from attention_xp._engine.kernels.fused._cudnn_graph import Spec, build
from attention_xp._engine.kernels.fused._translation import (
    band,
    column_rules,
    fill_empty_rows,
    fill_padding,
    operand,
    refused_rule,
    starts_at_0,
    unknown_option,
)
from attention_xp._engine.plan.borders import formula_is_faster
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._typing import Array, Device

__all__ = ["attend", "is_worthwhile", "refusal"]

_DTYPES = frozenset({"float16", "bfloat16"})
_OLDEST = 91002  # cuDNN 9.10.2: minus infinity in a bias excludes, and a window goes together with a bias
_OF_EMPTY_ROWS = {"output": 0.0, "stats": -math.inf}  # of rows that are padding, or may attend nothing


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return why cuDNN's kernels cannot compute the problem, or cannot run here."""
    unknown = unknown_option(problem, wanted._replace(lse=False))
    if unknown is not None:
        return f"cuDNN's attention knows no {unknown}"
    if dtype_name(problem.query.dtype) not in _DTYPES:
        return f"cuDNN's attention computes in 16 bits (float16 or bfloat16), not in {dtype_name(problem.dtype)}"
    reason = _refused_mask(problem) or _refused_installation()
    if reason is not None:
        return reason
    with _device(problem.query):
        plan = _plan(_spec(problem, wanted))
    return plan if isinstance(plan, str) else None


def _refused_mask(problem: Problem) -> str | None:
    (left, right), has_lengths = _limits(problem), _has_lengths(problem)
    if left is not None and has_lengths:
        return "cuDNN's attention takes lengths with a window that is open to the left only: window=(None, right)"
    # With lengths, it would align the ends without the padding.
    if (left, right) != (None, None) and not (starts_at_0(problem) or (_ends_at_end(problem) and not has_lengths)):
        return "cuDNN's attention knows query_offset=0 and, without lengths, query_offset=Sk - Sq only"
    return refused_rule(column_rules(problem))


def _limits(problem: Problem) -> tuple[int | None, int | None]:
    """Return how many keys to its left and right a query may attend; ``None`` where that excludes no key."""
    left, right = band(column_rules(problem))
    offset = 0 if problem.query_offset is None else problem.query_offset
    if isinstance(offset, int):
        Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
        left = None if left is None or left >= offset + Sq - 1 else left
        right = None if right is None or offset + right >= Sk - 1 else right
    return left, right


def _has_lengths(problem: Problem) -> bool:
    return problem.query_lengths is not None or _has_key_lengths(problem)


def _has_key_lengths(problem: Problem) -> bool:
    return any(rule._as_lengths is not None for rule in problem.rules)


def _ends_at_end(problem: Problem) -> bool:
    """Whether the last query of every batch item has the position of the last key."""
    surplus = problem.key.shape[-2] - problem.query.shape[-2]
    return isinstance(problem.query_offset, int) and bool(problem.query_offset == surplus >= 0)


@cache
def _refused_installation() -> str | None:
    try:
        version = import_module("cudnn").backend_version()
    except ModuleNotFoundError:
        return "cuDNN's attention needs its front end, and no nvidia-cudnn-frontend is installed"
    except (ImportError, OSError, RuntimeError) as error:
        return f"cuDNN's front end does not work here: {error}"
    return None if version >= _OLDEST else f"cuDNN's attention is used from version {_OLDEST} on, not with {version}"


def is_worthwhile(problem: Problem) -> bool:
    """Return whether the kernel is a good choice: not for so few scores that building a graph takes longer."""
    return not formula_is_faster(problem)


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Execute the graph on CuPy's current stream."""
    spec = _spec(problem, wanted)
    arrays = inputs(problem, spec) | outputs(problem, spec)
    with _device(problem.query):
        _execute(cast("_Plan", _plan(spec)), arrays)  # it can be built: otherwise `refusal` had said so
    found = {
        name: _with_empty_rows(problem, arrays[name], value) for name, value in _OF_EMPTY_ROWS.items() if name in arrays
    }
    return Attended(found["output"], None, found["stats"][..., 0] if wanted.lse else None)


def _with_empty_rows(problem: Problem, rows: Array, value: float) -> Array:
    """Return a result (B, H, Sq, n) with all leading axes, and with one value where nothing is attended."""
    rows = problem.xp.reshape(rows, (*problem.lead, *rows.shape[-2:]))
    return fill_padding(problem, fill_empty_rows(problem, column_rules(problem), rows, value), value)


def _spec(problem: Problem, wanted: Wanted) -> Spec:
    """Return all that the graph of a problem depends on."""
    limits, is_padded = _limits(problem), _has_key_lengths(problem)
    return Spec(
        device=_device(problem.query).id,
        dtype=dtype_name(problem.query.dtype),
        scale=problem.scale,
        query=layout(operand(problem, problem.query)),
        key=layout(operand(problem, problem.key), is_new=is_padded),
        value=layout(operand(problem, problem.value), is_new=is_padded),
        bias=bias_shape(problem),
        limits=limits,
        ends_at_end=limits != (None, None) and not starts_at_0(problem),
        has_lengths=_has_lengths(problem),
        has_stats=wanted.lse,
    )


def _device(a: Array) -> Device:
    """Return the GPU of an array: the current one within its context."""
    return a.device


class _Plan(NamedTuple):
    graph: Any
    tensors: dict[str, Any]
    workspace: int  # bytes


@lru_cache(maxsize=64)
def _plan(spec: Spec) -> _Plan | str:
    """Build the graph for the current device, or return why that cannot be done."""
    cudnn: Any = sys.modules["cudnn"]
    try:
        graph, tensors = build(cudnn, spec, _handle(spec.device, threading.get_ident()))
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        return _Plan(graph, tensors, graph.get_workspace_size())
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError, TypeError, ValueError) as error:
        return "cuDNN's attention cannot be built: {}".format(str(error).partition("\n")[0])


@cache
def _handle(device: int, thread: int) -> Any:  # noqa: ARG001  # a handle belongs to one of each
    return sys.modules["cudnn"].create_handle()


def _execute(plan: _Plan, arrays: dict[str, Array]) -> None:
    """Run the graph on the device and the current stream of CuPy."""
    cudnn: Any = sys.modules["cudnn"]
    cuda: Any = sys.modules["cupy"].cuda
    handle = _handle(_device(arrays["query"]).id, threading.get_ident())
    cudnn.set_stream(handle, cuda.get_current_stream().ptr)
    workspace = cuda.alloc(plan.workspace)
    plan.graph.execute({plan.tensors[name]: address(a) for name, a in arrays.items()}, workspace.ptr, handle)
