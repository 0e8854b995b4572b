"""cuDNN's attention on CUDA, through JAX's ``dot_product_attention``.

What it takes is written in ``check_layout`` and ``check_is_flash_attention`` of JAX, and tried there
in its own tests: a bias and a mask with causal order or lengths, a window with causal order alone.
"""

import sys
from typing import Any

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.libraries import cuda_device
from attention_xp._backend.modes import is_mapped
from attention_xp._engine.kernels.fused._translation import (
    added,
    allowed,
    band,
    column_rules,
    fill_empty_rows,
    fill_padding,
    four_axes,
    has_array,
    operand,
    refused_rule,
    starts_at_0,
    unknown_option,
    valid_lengths,
    with_zero_keys,
)
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["attend", "is_worthwhile", "refusal"]

_IMPLEMENTATION = "cudnn"  # "xla" computes the same on any device, dtype and width, for the tests
_OLDEST = 8.0
_STEP = 8  # every head dimension is a multiple of it


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return why cuDNN's kernel cannot compute the problem."""
    return _refused_device(problem) or _refused_option(problem, wanted) or _refused_mask(problem)


def _refused_device(problem: Problem) -> str | None:
    """Return why the kernel does not take device, dtype or widths."""
    D, Dv = problem.query.shape[-1], problem.value.shape[-1]
    if Dv != D:
        return f"JAX's dot_product_attention needs values as wide as the keys: D is {D} but Dv is {Dv}"
    if _IMPLEMENTATION != "cudnn":
        return None
    device = cuda_device(problem.query)
    if device is None:
        return "cuDNN, JAX's fused kernel, needs a CUDA device"
    if problem.query.dtype == problem.dtype:
        return f"cuDNN's attention computes in 16 bits (float16 or bfloat16), not in {dtype_name(problem.dtype)}"
    if float(device.compute_capability) < _OLDEST:
        return f"cuDNN's attention needs a GPU of compute capability {_OLDEST} (Ampere) or later"
    widest = 256 if float(device.compute_capability) >= 9.0 else 128  # Hopper and later have twice that of others
    if widest < D or D % _STEP:
        return f"cuDNN's attention needs a head dimension D that is a multiple of {_STEP} up to {widest}, not {D}"
    return None


def _refused_option(problem: Problem, wanted: Wanted) -> str | None:
    unknown = unknown_option(problem, wanted)
    return None if unknown is None else f"cuDNN's attention knows no {unknown}"


def _refused_mask(problem: Problem) -> str | None:
    rules, lengths = column_rules(problem), (problem.query.shape[-2], problem.key.shape[-2])
    reason = refused_rule(rules)
    if reason is not None:
        return reason
    left, right = band(rules)
    if right == 0 and not starts_at_0(problem):
        return "cuDNN's attention knows no query_offset under a causal mask"
    if left is not None or right not in (None, 0):
        return _refused_window(problem, rules)
    if has_array(problem, rules) and any(length % 2 != 0 for length in lengths):
        return "cuDNN's attention is differentiable under a mask or bias of even lengths Sq and Sk only"
    return None


def _refused_window(problem: Problem, rules: tuple[Mask, ...]) -> str | None:
    if band(rules)[1] != 0:
        return "cuDNN's attention knows a window under a causal mask only: window=(left, 0)"
    is_alone = len(problem.addends) == 0 and all(rule._as_band is not None for rule in rules)
    if not is_alone or problem.query.shape[-2] != problem.key.shape[-2]:
        return "cuDNN's attention takes a window with Sq == Sk only, and with no mask, bias or lengths"
    return None


def is_worthwhile(problem: Problem) -> bool:
    """Return whether the kernel is faster than tiles: on a GPU, outside of `vmap`, which it can only map over all arrays."""
    mapped = is_mapped(*problem.operands)
    return not mapped and cuda_device(problem.query) is not None


def attend(problem: Problem, wanted: Wanted) -> Attended:  # noqa: ARG001
    """Call the kernel with (B, S, H, D)."""
    jax: Any = sys.modules["jax"]
    xp, rules = problem.xp, column_rules(problem)
    key, value = (with_zero_keys(problem, rules, a) for a in (problem.key, problem.value))
    bias, keep = _bias_and_mask(problem, rules)
    q_lengths, k_lengths = valid_lengths(problem, rules)
    left, right = band(rules)
    output = jax.nn.dot_product_attention(
        *(xp.permute_dims(operand(problem, a), (0, 2, 1, 3)) for a in (problem.query, key, value)),
        bias=bias,
        mask=keep,
        scale=problem.scale,
        is_causal=right == 0,
        query_seq_lengths=q_lengths,
        key_value_seq_lengths=k_lengths,
        local_window_size=None if left is None else (left, 0),
        implementation=_IMPLEMENTATION,
    )
    output = xp.permute_dims(output, (0, 2, 1, 3))  # (B, Sq, H, D) -> (B, H, Sq, D)
    output = xp.reshape(output, (*problem.lead, *output.shape[-2:]))
    return Attended(fill_padding(problem, fill_empty_rows(problem, rules, output)), None, None)


def _bias_and_mask(problem: Problem, rules: tuple[Mask, ...]) -> tuple[Array | None, Array | None]:
    """Return what is added and what is allowed, each (B or 1, H or 1, Sq, Sk); adding minus infinity excludes."""
    xp = problem.xp
    keep = allowed(problem, tuple(rule for rule in rules if rule._as_array is not None))
    total = added(problem)
    if total is not None:
        finite = total != -xp.inf
        keep = finite if keep is None else keep & finite
        total = _spread(problem, xp.astype(xp.where(finite, total, 0.0), problem.query.dtype))
    return total, None if keep is None else _spread(problem, keep)


def _spread(problem: Problem, a: Array) -> Array:
    """Return (B or 1, H or 1, Sq, Sk) of what broadcasts to the scores."""
    a = four_axes(problem, a)
    return problem.xp.broadcast_to(a, (*a.shape[:2], problem.query.shape[-2], problem.key.shape[-2]))
