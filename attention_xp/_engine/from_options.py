"""The options of a call as rules on pairs of query and key, and as additions to their scores."""

import math
from numbers import Real
from typing import Any

from attention_xp._backend.dtypes import is_boolean
from attention_xp._engine.alignment import Alignment
from attention_xp._engine.checks import shapes
from attention_xp._engine.numbers import check_flag, check_window
from attention_xp._engine.rules import RowMask
from attention_xp._options import AttentionOptions
from attention_xp._typing import Array, Namespace
from attention_xp.biases._bias import Bias
from attention_xp.masks import CausalMask, LengthMask, Mask, WindowMask
from attention_xp.masks._algebra import conjuncts

__all__ = ["addends_of", "array_options", "mask_parts", "refuse_to_guess", "rules_of"]


def array_options(mask: Any, bias: Any, o: AttentionOptions) -> dict[str, Any]:
    """Return the options that are arrays and must belong to the library of the query."""
    _refuse_other("mask", mask, "a rule from attention_xp.masks, where FunctionMask makes one of a function")
    _refuse_other("bias", bias, "a rule from attention_xp.biases")
    given = {"mask": mask, "bias": bias, "sinks": o["sinks"]}
    for name in ("query_offset", "query_lengths", "key_lengths", "scale"):
        if not isinstance(o[name], int) and hasattr(o[name], "dtype") and not isinstance(o[name], Real):
            given[name] = o[name]
    return {name: a for name, a in given.items() if a is not None}


def _refuse_other(name: str, given: Any, rule: str) -> None:
    if given is not None and not hasattr(given, "dtype"):
        kind = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise TypeError(f"{name} must be an array or {rule}, got {kind}")


def rules_of(o: AttentionOptions, mask: Mask | None, rows: Any, columns: Any) -> list[Mask]:
    """Return the options that exclude pairs as mask rules."""
    rules: list[Mask] = []
    if check_flag("is_causal", o["is_causal"]):
        rules.append(CausalMask())
    if o["window"] is not None:
        rules.append(WindowMask(*check_window(o["window"])))
    if mask is not None:
        rules += conjuncts(mask)
    if columns is not None:
        rules.append(LengthMask(columns))
    if rows is not None:
        rules.append(RowMask(rows))
    return rules


def addends_of(line_up: Alignment, bias: Array | Bias | None) -> list[Any]:
    """Return what the bias adds to the scores."""
    if bias is None or isinstance(bias, Bias):
        return [] if bias is None else [bias]
    return [line_up.addend("bias", bias)]


def mask_parts(mask: Array, xp: Namespace) -> tuple[Array, list[Array]]:
    """Return where a mask allows, and what it adds to the scores."""
    return (mask, []) if is_boolean(xp, mask.dtype) else (mask != -math.inf, [mask])


def refuse_to_guess(rules: list[Mask], query: Array, key: Array) -> None:
    if any(rule.relative for rule in rules) and query.shape[-2] != key.shape[-2]:
        raise ValueError(
            "query_offset is required with a causal or window mask where Sq != Sk: expected query_offset=0 (aligned "
            f"top-left) or query_offset=Sk - Sq (aligned bottom-right), {shapes(query=query, key=key)}"
        )
