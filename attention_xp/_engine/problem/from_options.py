"""The options of a call as rules on pairs of query and key, and as additions to their scores."""

import math
from numbers import Real
from typing import Any, NamedTuple

from attention_xp._backend.dtypes import is_boolean
from attention_xp._backend.libraries import is_jax_namespace, to_array_of
from attention_xp._backend.values import all_above
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_flag, check_window
from attention_xp._engine.problem.options import AttentionOptions
from attention_xp._scores.alignment import (
    aligned_addend,
    aligned_integers,
    aligned_mask,
    aligned_positions,
    positions_from,
)
from attention_xp._scores.attributes import with_parts
from attention_xp._scores.frame import Frame
from attention_xp._scores.region import own_array
from attention_xp._typing import Array
from attention_xp.biases._bias import Bias
from attention_xp.masks import ArrayMask, CausalMask, LengthMask, Mask, WindowMask
from attention_xp.masks._call_rules import AlignedMask, BiasMask, RowMask, UnseenMask
from attention_xp.masks._mask import conjuncts, holds_array

__all__ = [
    "KeyPlaces",
    "array_options",
    "bias_parts",
    "check_one_place",
    "key_places",
    "lined_up",
    "mask_parts",
    "refuse_to_guess",
    "rules_of",
]


def array_options(mask: Any, bias: Any, o: AttentionOptions) -> dict[str, Any]:
    """Return the options that are arrays and must belong to the library of the query."""
    _refuse_other("mask", mask)
    _refuse_other("bias", bias)
    given = {"mask": mask, "bias": bias, "sinks": o["sinks"]}
    for name in (
        "query_offset",
        "key_offset",
        "key_positions",
        "item_ids",
        "head_ids",
        "query_lengths",
        "key_lengths",
        "scale",
    ):
        # Numbers first: torch cannot trace what attributes a symbol has.
        if not isinstance(o[name], (int, float)) and hasattr(o[name], "dtype") and not isinstance(o[name], Real):
            given[name] = o[name]
    return {name: a for name, a in given.items() if a is not None}


_RULES = {"mask": "attention_xp.masks", "bias": "attention_xp.biases"}
_OF_FUNCTION = {"mask": "FunctionMask makes a rule of it", "bias": "score_mod takes one"}


def _refuse_other(name: str, given: Any) -> None:
    if given is not None and not hasattr(given, "dtype"):
        raise TypeError(f"{name} must be an array or a rule from {_RULES[name]}, got {_told(name, given)}")


def _told(name: str, given: Any) -> str:
    """Return how an error names what was given, and what it suggests."""
    kind = type(given).__name__
    if kind == "BlockMask" and name == "mask":  # torch's; our own is a rule
        return f"torch's {kind}: attention_xp.interop.torch.rule_from_block_mask makes a rule of it"
    if isinstance(given, type):
        return f"the class {given.__name__}: pass an object of it, {given.__name__}(...)"
    if isinstance(given, Mask | Bias):
        return f"{kind}, which goes into {'mask' if isinstance(given, Mask) else 'bias'}"
    return f"{kind}: {_OF_FUNCTION[name]}" if callable(given) else f"{kind}{to_array_of(name, given)}"


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


def bias_parts(frame: Frame, bias: Array | Bias | None) -> tuple[list[Any], list[Mask]]:
    """Return what a bias adds to the scores, and what it excludes by adding minus infinity."""
    if bias is None:
        return [], []
    if isinstance(bias, Bias):
        return [bias], [BiasMask(bias)] if bias.may_exclude else []
    added = aligned_addend(frame, "bias", bias)
    if all_above(frame.xp, added, -math.inf):
        return [added], []
    kind = UnseenMask if is_jax_namespace(frame.xp) else AlignedMask
    return [added], [kind(added != -math.inf, frame.batch, frame.heads is not None)]


def mask_parts(frame: Frame, mask: Array) -> tuple[list[Array], list[Mask]]:
    """Return what an array mask adds to the scores, and what it excludes."""
    mask = aligned_mask(frame, mask)
    if is_boolean(frame.xp, mask.dtype):
        return [], [_aligned(frame, mask)]
    return [mask], [_aligned(frame, mask != -math.inf)]


def _aligned(frame: Frame, array: Array) -> AlignedMask:
    return AlignedMask(array, frame.batch, frame.heads is not None)


def lined_up(frame: Frame, mask: Mask) -> Mask:
    """Return a mask whose arrays are aligned with the scores."""
    if isinstance(mask, ArrayMask):
        return _aligned(frame, aligned_mask(frame, own_array(frame.xp, mask.array, frame.query)))
    if not holds_array(mask):
        return mask

    def changed(part: Any) -> Any:
        return lined_up(frame, part) if isinstance(part, Mask) else part

    return with_parts(mask, changed)  # type: ignore[no-any-return]


class KeyPlaces(NamedTuple):
    """The positions of the keys: an offset, or an array (..., 1, 1, Sk), with rules that exclude empty slots."""

    offset: int | None
    positions: Array | None
    rules: list[Mask]
    is_given: bool


_COLUMNS = KeyPlaces(None, None, [], is_given=False)  # of keys that stand where their columns are


def check_one_place(key_offset: Any, key_positions: Any) -> None:
    """Refuse two answers to where the keys stand."""
    if key_offset is not None and key_positions is not None:
        raise ValueError("key_offset and key_positions both say where keys stand: expected one of them")


def key_places(frame: Frame, o: AttentionOptions) -> KeyPlaces:
    """Return the positions of the keys of a call."""
    offset, positions = o["key_offset"], o["key_positions"]
    if offset is None and positions is None:
        return _COLUMNS
    if positions is not None:
        check_one_place(offset, positions)
        aligned = aligned_positions(frame, positions)
        if all_above(frame.xp, aligned, -1):
            return KeyPlaces(None, aligned, [], is_given=True)
        return KeyPlaces(None, aligned, [_aligned(frame, aligned >= 0)], is_given=True)
    offset = aligned_integers(frame, "key_offset", offset)
    if isinstance(offset, int):
        return KeyPlaces(offset or None, None, [], is_given=True)
    return KeyPlaces(None, positions_from(frame, offset), [], is_given=True)


def _heads_last(query: Array, key: Array) -> str:
    """Return a hint where lengths look like numbers of heads, as they do if these stand behind the sequence."""
    looks_so = query.ndim > 3 and query.shape[-3] == key.shape[-3] and query.shape[-2] % max(key.shape[-2], 1) == 0
    return "; if these are (B, S, H, D), exchange S and H: heads come before the sequence" if looks_so else ""


def refuse_to_guess(rules: list[Mask], query: Array, key: Array, *, is_moved: bool) -> None:
    """Refuse rules that compare positions where those of the rows are not given and not obvious."""
    if not any(rule.relative for rule in rules):
        return
    if is_moved:
        raise ValueError(
            "query_offset is required with a causal or window mask where key_offset or key_positions are given: expected "
            "the position of the first query in the whole"
        )
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            "query_offset is required with a causal or window mask where Sq != Sk: expected query_offset=0 (aligned "
            f"top-left) or query_offset=Sk - Sq (aligned bottom-right), {shapes(query=query, key=key)}{_heads_last(query, key)}"
        )
