"""torch's ``scaled_dot_product_attention``, on CPU and CUDA."""

import math
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

from attention_xp._backend.autocast import narrows
from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.modes import (
    differentiates_again,
    in_forward_mode,
    is_compiling,
    is_mapped,
    is_traced,
    is_transformed,
    refuse_shards,
    shares_keys,
)
from attention_xp._backend.values import shows_nan
from attention_xp._engine.kernels.fused._translation import (
    added,
    allowed,
    attending,
    column_rules,
    fill_padding,
    four_axes,
    operand,
    starts_at_0,
    unknown_option,
    with_zero_keys,
)
from attention_xp._engine.plan.borders import (
    rules_are_faster_as_array,
    sdpa_is_faster,
    sdpa_is_faster_wide,
    sdpa_is_slow_for_few_rows,
)
from attention_xp._engine.plan.one_array import is_small, shape_of_rules
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._typing import Array

__all__ = ["attend", "is_worthwhile", "makes_array", "raw_and_output", "refusal"]

_FEW = 2**15  # up to so many numbers, looking at all of them takes no longer than at some


def refusal(problem: Problem, wanted: Wanted) -> str | None:
    """Return why torch's kernel cannot compute the problem."""
    unknown = unknown_option(problem, wanted)
    if unknown is None and differentiates_again():
        unknown = "derivatives of derivatives inside torch.func"
    return _refused_mask(problem) if unknown is None else f"torch's scaled_dot_product_attention knows no {unknown}"


def _refused_mask(problem: Problem) -> str | None:
    if not makes_array(problem):
        return None
    reason = "torch's scaled_dot_product_attention would need this mask as an array of"
    if is_compiling(problem.xp):  # its sizes may be symbols
        return f"{reason} (Sq, Sk)"
    return None if is_small(problem) else f"{reason} {shape_of_rules(problem)}"


def makes_array(problem: Problem) -> bool:
    """Whether the kernel gets its mask as an array that has to be made: it takes causal order alone, and what is one already."""
    rules = column_rules(problem)
    if _is_causal(problem):
        return False
    return not all(rule._as_array is not None or rule._as_lengths is not None for rule in rules)


def is_worthwhile(problem: Problem) -> bool:
    """Return whether the kernel is the fastest and has the derivatives: under `vmap` it falls back to a loop."""
    if in_forward_mode() or problem.has_bias_rule:
        return False
    arrays = problem.operands
    if is_transformed() and (is_mapped(*arrays) or differentiates_again(*arrays, *problem.addends)):
        return False
    if makes_array(problem) and not rules_are_faster_as_array(problem):
        return False
    return sdpa_is_faster(problem) and not sdpa_is_slow_for_few_rows(problem)


def attend(problem: Problem, wanted: Wanted) -> Attended | None:
    """Call the kernel; ``None`` where `auto` has to choose another one.

    The kernel multiplies what is excluded by weights of 0, which makes NaN of values that are not finite. A NaN in its
    output therefore means that an excluded value may have reached a row. In causal order the last row attends all keys,
    and it suffices to look there. Rows that are filled with zeros afterwards count as well, for gradients go back through
    what the kernel computed there.
    """
    way = problem.once(_way)
    if way.is_all and problem.answers is not None:
        shortcut = problem.answers[wanted] = partial(_attend_directly, way.keywords)  # for later calls of the same kind
        return shortcut(problem.query, problem.key, problem.value)
    try:
        raw, output = _raw_and_output(problem, way)
    except NotImplementedError as error:
        if not in_forward_mode():
            raise
        raise NotImplementedError(
            "torch's scaled_dot_product_attention has no forward mode; impl='dense' and impl='tiled' have"
        ) from error
    if way.may_reach:
        is_long = way.keywords["is_causal"] and raw.numel() > _FEW
        if shows_nan(problem.xp, raw.select(-2, -1) if is_long else raw):
            return None
    return Attended(output, None, None)


def _attend_directly(keywords: dict[str, Any], query: Array, key: Array, value: Array) -> Attended:
    """Call the kernel for a call of a known kind, of which nothing else has to be done."""
    output = _called(query, key, value, keywords, is_known=True)
    return Attended(output if output.dtype == query.dtype else output.to(query.dtype), None, None)


def raw_and_output(problem: Problem) -> tuple[Array, Array]:
    """Return the output of the kernel as it came, and that of the problem in the dtype of the query, with its zeros."""
    return _raw_and_output(problem, problem.once(_way))


def _raw_and_output(problem: Problem, way: "_Way") -> tuple[Array, Array]:
    given = _widened(problem) if way.may_be_widened else problem
    if way.is_direct:
        raw = output = _called(given.query, given.key, given.value, way.keywords, is_known=problem.is_known)
    else:
        raw, output = _translated(given, way.keywords)
    if output.dtype != problem.query.dtype:  # under autocast, or widened
        output = output.to(problem.query.dtype)
    return raw, output


class _Way(NamedTuple):
    """How the kernel is called."""

    keywords: dict[str, Any]  # the arguments of the kernel that are plain values
    may_be_widened: bool  # whether the kernel computes in 32 bits where gradients may be asked for
    is_direct: bool  # whether the kernel takes all arrays, and its output is taken, without a change
    may_reach: bool  # whether `auto` looks for a NaN in the output, as what an excluded value would leave
    is_all: bool  # whether there is nothing else to do than to call the kernel, as for most tiny calls


def _way(problem: Problem) -> _Way:
    """Return how the kernel is called; for a known call, this is found out once."""
    may_be_widened, is_direct = _may_be_widened(problem), _is_taken_as_it_is(problem)
    may_exclude = len(problem.rules) > 0 or problem.query_lengths is not None
    may_reach = may_exclude and problem.impl == "auto" and not is_compiling(problem.xp)
    is_all = problem.is_known and is_direct and not may_exclude and not may_be_widened
    return _Way(_keywords(problem), may_be_widened, is_direct, may_reach, is_all)


def _may_be_widened(problem: Problem) -> bool:
    """Whether the kernel computes in 32 bits where gradients may be asked for; not in a trace, which has no sizes to compare."""
    return problem.query.dtype != problem.dtype and not is_traced() and sdpa_is_faster_wide(problem)


def _widened(problem: Problem) -> Problem:
    """Return the problem in 32 bits where gradients may be asked for, unless autocast would narrow it again.

    Autograd keeps query, key, value and output for them, now in twice the memory.
    """
    if not _is_followed(problem) or narrows(problem.query):
        return problem
    return problem.of_arrays(problem.query.float(), problem.key.float(), problem.value.float())


def _keywords(problem: Problem) -> dict[str, Any]:
    """Return the arguments of the kernel that are plain values."""
    grouped = {"enable_gqa": True} if problem.group > 1 else {}  # by `if`: comparing a traced size gives no bool
    return {"is_causal": _is_causal(problem), "scale": problem.scale, **grouped}


def _is_causal(problem: Problem) -> bool:
    """Whether causal order is all that is asked for: the kernel takes it with no offset, and no other mask or bias."""
    rules = column_rules(problem)
    if len(rules) != 1 or rules[0]._as_band != (None, 0):
        return False
    return len(problem.addends) == 0 and starts_at_0(problem)


def _is_taken_as_it_is(problem: Problem) -> bool:
    """Whether the kernel takes all arrays, and its output is taken, without a change, as in most calls."""
    is_causal = _is_causal(problem)
    if len(problem.rules) > int(is_causal) or len(problem.addends) > 0 or problem.ndim != 4 or _has_end(problem):
        return False
    has_all = all(a.shape[0] == problem.batch[0] for a in (problem.query, problem.key, problem.value))
    return has_all and not (is_causal and _has_unseen_keys(problem))


def _has_unseen_keys(problem: Problem) -> bool:
    """Whether there are keys that no query attends in causal order; sizes that torch leaves open are not compared."""
    return not is_compiling(problem.xp) and bool(problem.key.shape[-2] > problem.query.shape[-2])


def _has_end(problem: Problem) -> bool:
    """Whether keys behind a known end were cut off."""
    return bool(problem.key.shape[-2] != problem.given_keys)


def _translated(problem: Problem, keywords: dict[str, Any]) -> tuple[Array, Array]:
    """Call the kernel with four axes, as its fast paths want them, and with one mask; padding is made harmless."""
    is_causal = _is_causal(problem)
    is_masked = len(problem.rules) + len(problem.addends) > int(is_causal)
    if is_masked or _has_end(problem) or _has_unseen_keys(problem):
        refuse_shards(problem.xp)
    rules = column_rules(problem)
    keep, total = (None, None) if is_causal else (allowed(problem, rules), added(problem))
    mask = _mask(problem, keep, total)
    key, value = problem.key, problem.value
    if is_causal and _has_unseen_keys(problem):  # a NaN there must not reach any row
        Sq = problem.query.shape[-2]
        key, value = key[..., :Sq, :], value[..., :Sq, :]
    # In a row that attends nothing, a query or a gradient may be NaN, and 0 times that is NaN as well.
    query, is_followed = fill_padding(problem, problem.query), mask is not None and _is_followed(problem)
    attends = attending(problem, keep, total) if is_followed or not _gives_zeros(problem.query) else None
    if is_followed and attends is not None:
        query = problem.xp.where(attends, query, 0.0)
    raw = output = _called(
        operand(problem, query),
        operand(problem, with_zero_keys(problem, rules, key)),
        operand(problem, with_zero_keys(problem, rules, value)),
        {"attn_mask": None if mask is None else four_axes(problem, mask), **keywords},
        is_known=problem.is_known,
    )
    if problem.ndim != 4:
        output = output.reshape(*problem.lead, *output.shape[-2:])
    if attends is not None:
        output = problem.xp.where(attends, output, 0.0)
    return raw, fill_padding(problem, output)


def _called(query: Array, key: Array, value: Array, keywords: dict[str, Any], *, is_known: bool) -> Array:
    """Call the kernel, and give its gradients derivatives of their own."""
    is_shared = shares_keys()
    output: Array = _kernel(is_shared=is_shared)(query, key, value, **keywords)
    if output.requires_grad and (is_known or not is_traced()) and not is_shared:
        _follow_gradients()(output)
    return output


def _kernel(*, is_shared: bool) -> Any:
    """Return torch's own kernel, also where a program has replaced the public function, for instance by one that calls us.

    The replacement that ``context_parallel`` makes is taken: it adds the keys of other ranks.
    """
    torch = sys.modules["torch"]
    return torch.nn.functional.scaled_dot_product_attention if is_shared else torch._C._nn.scaled_dot_product_attention


@cache
def _follow_gradients() -> Callable[[Array], None]:
    from attention_xp._engine.kernels.fused._torch_again import follow_gradients  # noqa: PLC0415  # imports torch

    return follow_gradients


def _is_followed(problem: Problem) -> bool:
    """Whether gradients may be asked for."""
    torch: Any = sys.modules["torch"]
    arrays = (problem.query, problem.key, problem.value, *problem.addends)
    return torch.is_grad_enabled() and any(a.requires_grad for a in arrays)


def _gives_zeros(query: Array) -> bool:
    """Whether the kernel gives zeros for a row that may attend nothing; on a GPU, one of them averages all keys."""
    return bool(query.device.type == "cpu")


def _mask(problem: Problem, keep: Array | None, total: Array | None) -> Array | None:
    """Return one mask of the pairs that are allowed and what is added: boolean, or floating in the dtype of the query."""
    if total is None:
        return keep
    if keep is not None:
        total = problem.xp.where(keep, total, -math.inf)
    return as_dtype(problem.xp, total, problem.query.dtype)
