"""torch's ``scaled_dot_product_attention``, on CPU and CUDA."""

import sys
from typing import Any

from attention_xp._backend import is_mapped
from attention_xp._engine.arithmetic import allowed_pairs
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._engine.result import Attended, Wanted
from attention_xp._engine.rules import ArrayMask, RowMask
from attention_xp._typing import Array
from attention_xp.masks import CausalMask, LengthMask, Mask

__all__ = ["attend", "is_worthwhile", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return what torch's kernel has no word for."""
    missing = {
        "a log-sum-exp": wanted.lse,
        "softcap": problem.softcap is not None,
        "score_mod": problem.score_mod is not None,
        "sinks": problem.sinks is not None,
        "dropout with a reproducible draw": problem.seed is not None,
        "additions in more than 16 bits": len(problem.addends) > 0 and problem.query.dtype != problem.dtype,
        "packed sequences": problem.packing is not None,
        "empty axes": 0 in problem.query.shape or 0 in problem.key.shape or 0 in problem.value.shape,
    }
    for name, is_wanted in missing.items():
        if is_wanted:
            return f"torch's scaled_dot_product_attention knows no {name}"
    return _refused_mask(problem)


def _refused_mask(problem: Problem) -> str | None:
    rules = _column_rules(problem)
    if any(isinstance(rule, CausalMask) for rule in rules):
        if len(rules) > 1 or len(problem.addends) > 0 or not _starts_at_0(problem):
            return "torch's scaled_dot_product_attention takes is_causal alone: no offset, and no other mask or bias"
        return None
    if not all(isinstance(rule, ArrayMask | LengthMask) for rule in rules):
        return "torch's scaled_dot_product_attention would need this mask as an array of (Sq, Sk)"
    return None


def _starts_at_0(problem: Problem) -> bool:
    return problem.query_offset is None or (isinstance(problem.query_offset, int) and problem.query_offset == 0)


def is_worthwhile(problem: Problem) -> bool:
    """Return whether the kernel is faster than tiles.

    For ``Dv != D`` it falls back to the plain formula, and under `vmap` to a loop over the items.
    """
    mapped = any(is_mapped(a) for a in (problem.query, problem.key, problem.value))
    return bool(problem.query.shape[-1] == problem.value.shape[-1]) and not mapped


def attend(problem: Problem, wanted: Wanted) -> Attended:  # noqa: ARG001
    """Call the kernel with four axes, as its fast paths want them."""
    torch: Any = sys.modules["torch"]
    rules = _column_rules(problem)
    causal = any(isinstance(rule, CausalMask) for rule in rules)
    mask = None if causal else _mask(problem, rules)
    key, value = (_without_padding_keys(problem, rules, a) for a in (problem.key, problem.value))
    output = torch.nn.functional.scaled_dot_product_attention(
        *(_four_axes(problem, a) for a in (problem.query, key, value)),
        attn_mask=None if mask is None else _four_axes(problem, mask),
        is_causal=causal,
        scale=problem.scale,
        enable_gqa=problem.group > 1,
    )
    output = output.reshape(*problem.lead, *output.shape[-2:])
    return Attended(_without_padding(problem, output), None, None)


def _column_rules(problem: Problem) -> tuple[Mask, ...]:
    """Return the rules but those on rows, which are zeroed afterwards."""
    return tuple(rule for rule in problem.rules if not isinstance(rule, RowMask))


def _mask(problem: Problem, rules: tuple[Mask, ...]) -> Array | None:
    """Return one mask for all rules and additions: boolean, or floating in the dtype of the query."""
    allowed = allowed_pairs(rules, Region.whole(problem))
    if len(problem.addends) == 0:
        return allowed
    total = sum(problem.addends[1:], start=problem.addends[0])
    if allowed is not None:
        total = problem.xp.where(allowed, total, -float("inf"))
    return problem.xp.astype(total, problem.query.dtype, copy=False)


def _four_axes(problem: Problem, a: Array) -> Array:
    """Return (B, H, S, D), with the leading axes broadcast and joined."""
    a = a.reshape((1,) * (2 - a.ndim) + tuple(a.shape)) if a.ndim < 2 else a
    lead = problem.batch if problem.heads is None else (*problem.batch, a.shape[-3] if a.ndim > 2 else 1)
    if len(lead) == 2 and a.ndim == 4:
        return a
    heads = lead[-1] if problem.heads is not None else 1
    spread = a.expand(*lead, *a.shape[-2:])
    return spread.reshape(-1, heads, *a.shape[-2:])


def _without_padding_keys(problem: Problem, rules: tuple[Mask, ...], a: Array) -> Array:
    """Return keys or values with zeros for the padding, whose NaN a weight of 0 would not silence."""
    for rule in rules:
        if isinstance(rule, LengthMask):
            real = rule.allowed(Region.whole(problem))  # (Sk,) or (..., 1, Sk)
            a = problem.xp.where(problem.xp.expand_dims(real[..., 0, :] if real.ndim > 1 else real, axis=-1), a, 0.0)
    return a


def _without_padding(problem: Problem, output: Array) -> Array:
    if problem.query_lengths is None:
        return output
    region = Region.whole(problem)
    return problem.xp.where(region.row < region.per_batch(problem.query_lengths), output, 0.0)
