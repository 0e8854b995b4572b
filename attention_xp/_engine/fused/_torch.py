"""torch's ``scaled_dot_product_attention``, on CPU and CUDA."""

import math
import sys
from typing import Any

from attention_xp._backend.modes import in_forward_mode, is_mapped
from attention_xp._engine.borders import sdpa_is_faster
from attention_xp._engine.fused._translation import (
    added,
    allowed,
    column_rules,
    fill_empty_rows,
    fill_padding,
    four_axes,
    operand,
    starts_at_0,
    unknown_option,
    with_zero_keys,
)
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Attended, Wanted
from attention_xp._engine.rules import ArrayMask
from attention_xp._typing import Array
from attention_xp.masks import CausalMask, LengthMask, Mask

__all__ = ["attend", "is_worthwhile", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return what torch's kernel has no word for."""
    unknown = unknown_option(problem, wanted)
    return _refused_mask(problem) if unknown is None else f"torch's scaled_dot_product_attention knows no {unknown}"


def _refused_mask(problem: Problem) -> str | None:
    rules = column_rules(problem)
    if len(rules) == 0:
        return None
    if any(isinstance(rule, CausalMask) for rule in rules):
        if len(rules) > 1 or len(problem.addends) > 0 or not starts_at_0(problem):
            return "torch's scaled_dot_product_attention takes is_causal alone: no offset, and no other mask or bias"
        return None
    if not all(isinstance(rule, ArrayMask | LengthMask) for rule in rules):
        return "torch's scaled_dot_product_attention would need this mask as an array of (Sq, Sk)"
    return None


def is_worthwhile(problem: Problem) -> bool:
    """Return whether the kernel is the fastest: under `vmap` it falls back to a loop, and it has no forward mode."""
    mapped = is_mapped(problem.query, problem.key, problem.value)
    return sdpa_is_faster(problem) and not mapped and not in_forward_mode()


def attend(problem: Problem, wanted: Wanted) -> Attended:  # noqa: ARG001
    """Call the kernel with four axes, as its fast paths want them."""
    torch: Any = sys.modules["torch"]
    rules = column_rules(problem)
    causal = len(rules) > 0 and any(isinstance(rule, CausalMask) for rule in rules)
    mask = None if causal else _mask(problem, rules)
    grouped = {"enable_gqa": True} if problem.group > 1 else {}  # asked with `if`: a traced size answers with no bool
    output = torch.nn.functional.scaled_dot_product_attention(
        # A slope of 0 would not silence what is NaN in a padded query.
        operand(problem, fill_padding(problem, problem.query)),
        operand(problem, with_zero_keys(problem, rules, problem.key)),
        operand(problem, with_zero_keys(problem, rules, problem.value)),
        attn_mask=None if mask is None else four_axes(problem, mask),
        is_causal=causal,
        scale=problem.scale,
        **grouped,
    )
    if problem.ndim != 4:
        output = output.reshape(*problem.lead, *output.shape[-2:])
    if output.dtype != problem.query.dtype:  # under autocast
        output = output.to(problem.query.dtype)
    if mask is not None and not _gives_zeros(problem.query):
        output = fill_empty_rows(problem, rules, output)
    return Attended(fill_padding(problem, output), None, None)


def _gives_zeros(query: Array) -> bool:
    """Whether the kernel has zeros for a row that may attend nothing; on a GPU, one of them averages all keys."""
    return bool(query.device.type == "cpu")


def _mask(problem: Problem, rules: tuple[Mask, ...]) -> Array | None:
    """Return one mask for all rules and additions: boolean, or floating in the dtype of the query."""
    keep, total = allowed(problem, rules), added(problem)
    if total is None:
        return keep
    if keep is not None:
        total = problem.xp.where(keep, total, -math.inf)
    return problem.xp.astype(total, problem.query.dtype, copy=False)
