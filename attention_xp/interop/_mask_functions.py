"""Mask functions of transformers, and padding, as rules that are never materialised."""

import inspect
from collections.abc import Callable
from functools import reduce
from operator import and_, or_
from typing import Any, TypeAlias

import torch
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from transformers import masking_utils

from attention_xp._typing import Array
from attention_xp.masks import ArrayMask, CausalMask, FunctionMask, LengthMask, Mask, SegmentMask, WindowMask
from attention_xp.masks._position_rules import SameChunk

__all__ = ["padding_rule", "rule_of", "translated"]

MaskFunction: TypeAlias = Callable[..., Any]

EVERYTHING = WindowMask(None, None)


def rule_of(mask_function: MaskFunction, *, kv_offset: int = 0) -> Mask:
    """Return the rule that a mask function of transformers stands for.

    What ``transformers.masking_utils`` makes (causal order, windows, chunks, blocks, packed sequences, and ``and_masks`` and
    ``or_masks`` of them) becomes rules that know which tiles they exclude. Any other function is asked about every pair.

    Parameters
    ----------
    mask_function : callable
        ``mask_function(batch_idx, head_idx, q_idx, kv_idx)`` returns whether a query may attend a key. A function that is not
        known is called with indices without axes, as under `torch.vmap`, and with head 0, as transformers does.
    kv_offset : int, default: 0
        The position of the first key. The rule counts keys from 0, and queries from the same place: a call has the
        ``query_offset`` ``q_offset - kv_offset``.

    Returns
    -------
    Mask
        For `attention_xp.flash_attention` and all other functions; its arrays are tensors.

    Raises
    ------
    TypeError
        If `mask_function` is not callable.

    Examples
    --------
    >>> from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay
    >>> from attention_xp.interop.transformers import rule_of
    >>> rule_of(and_masks(sliding_window_overlay(4), causal_mask_function))
    (WindowMask(3, None) & CausalMask())
    """
    if not callable(mask_function):
        raise TypeError(f"mask_function must be callable, got {type(mask_function).__name__}")
    return translated(mask_function, int(kv_offset), is_mapped=True)


def translated(mask_function: MaskFunction, shift: int, *, is_mapped: bool) -> Mask:
    """Return the rule of a mask function; functions that are not known are mapped, or called with arrays that broadcast."""
    if mask_function is masking_utils.causal_mask_function:
        return CausalMask()
    if mask_function is masking_utils.bidirectional_mask_function:
        return EVERYTHING
    translate = _KNOWN.get(_made_by(mask_function))
    rule = None
    if translate is not None:
        captured = inspect.getclosurevars(mask_function).nonlocals
        rule = translate(lambda f, more=0: translated(f, shift + more, is_mapped=is_mapped), shift, **captured)
    return FunctionMask(_Asked(mask_function, shift, is_mapped)) if rule is None else rule


def _made_by(mask_function: MaskFunction) -> str | None:
    """Return the name of the function of transformers that has made this one."""
    if getattr(mask_function, "__module__", None) != masking_utils.__name__:
        return None
    return getattr(mask_function, "__qualname__", "").partition(".<locals>.")[0]


class _Asked:
    """A mask function as `mask_mod`: positions count from the first key, and the head is 0."""

    def __init__(self, mask_function: MaskFunction, shift: int, is_mapped: bool) -> None:
        self.mask_function, self.shift, self.is_mapped = mask_function, shift, is_mapped
        self.__name__ = getattr(mask_function, "__qualname__", type(mask_function).__name__)

    def __call__(self, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        """Return whether pairs are allowed."""
        if not isinstance(q_idx, torch.Tensor):  # a rule that is drawn or measured
            return self(*map(torch.as_tensor, (b, h, q_idx, kv_idx))).numpy()
        indices = b.long(), torch.zeros_like(h, dtype=torch.int64), q_idx + self.shift, kv_idx + self.shift
        indices = tuple(index.long() for index in indices)
        if not self.is_mapped:
            return self.mask_function(*indices)
        indices = torch.broadcast_tensors(*indices)
        with TransformGetItemToIndex():  # what looks up an entry by an index without axes
            flat = torch.vmap(self.mask_function)(*(index.reshape(-1) for index in indices))
        return flat.reshape(indices[0].shape)


_Translate: TypeAlias = Callable[..., Mask]


def _all_of(translate: _Translate, shift: int, mask_functions: tuple[MaskFunction, ...]) -> Mask:
    return conjunction(
        _in_packed_sequences(translate, shift, f, mask_functions) or translate(f) for f in mask_functions
    )


def _in_packed_sequences(
    translate: _Translate, shift: int, one: MaskFunction, others: tuple[MaskFunction, ...]
) -> Mask | None:
    """Return the rule of a function of positions inside sequences, ``None`` where it is none, or does not say the same outside.

    Transformers joins it with the rule that sequences attend themselves. Between positions of one sequence the differences
    are those of the whole.
    """
    if _made_by(one) != "remap_positions_for_packed_sequence" or shift != 0:
        return None
    captured = inspect.getclosurevars(one).nonlocals
    rule, position_ids = translate(captured["mask_function"]), captured["position_ids"]
    ids = [
        inspect.getclosurevars(f).nonlocals["packed_sequence_mask"]
        for f in others
        if _made_by(f) == "packed_sequence_mask_function"
    ]
    sequences = _counted_sequences(position_ids)
    is_same = any(i.shape == sequences.shape and torch.equal(i.to(sequences.device), sequences) for i in ids)
    return rule if is_same and rule.shift_invariant else None


def _counted_sequences(position_ids: Array) -> Array:
    """Return the number of the sequence that each position belongs to: one ends where positions do not count on."""
    begins = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1
    return begins.cumsum(-1)


def _any_of(translate: _Translate, shift: int, mask_functions: tuple[MaskFunction, ...]) -> Mask:  # noqa: ARG001
    rules = [translate(f) for f in mask_functions]
    return EVERYTHING if EVERYTHING in rules else reduce(or_, rules) if rules else ~EVERYTHING


def conjunction(rules: Any) -> Mask:
    """Return the rule that all rules allow a pair."""
    kept = [rule for rule in rules if rule != EVERYTHING]
    return reduce(and_, kept) if kept else EVERYTHING


def _to_the_left(_: _Translate, shift: int, sliding_window: int) -> Mask | None:  # noqa: ARG001
    return WindowMask(sliding_window - 1, None) if isinstance(sliding_window, int) and sliding_window > 0 else None


def _to_both_sides(_: _Translate, shift: int, sliding_window: int) -> Mask | None:  # noqa: ARG001
    return (
        WindowMask(sliding_window, sliding_window) if isinstance(sliding_window, int) and sliding_window >= 0 else None
    )


def _chunks(_: _Translate, shift: int, chunk_size: int, left_padding: Array) -> Mask:
    return SameChunk(chunk_size, _one_or_each((left_padding - shift) % chunk_size))


def _blocks(_: _Translate, shift: int, block_sequence_ids: Array) -> Mask:
    ids = block_sequence_ids[:, shift:]
    return SegmentMask(ids, torch.where(ids < 0, ids.min() - 1, ids))  # a negative id is that of no block


def _sequences(_: _Translate, shift: int, packed_sequence_mask: Array) -> Mask:
    return SegmentMask(packed_sequence_mask[:, shift:])


def _moved(
    translate: _Translate, shift: int, mask_function: MaskFunction, q_offset: Any, kv_offset: Any
) -> Mask | None:
    is_one = isinstance(q_offset, int) and isinstance(kv_offset, int) and q_offset == kv_offset
    return translate(mask_function, q_offset) if is_one else None


# What makes a mask function in `transformers.masking_utils`, and the translation of what it has captured.
_KNOWN: dict[str | None, Callable[..., Mask | None]] = {
    "and_masks": _all_of,
    "or_masks": _any_of,
    "sliding_window_overlay": _to_the_left,
    "sliding_window_bidirectional_overlay": _to_both_sides,
    "chunked_overlay": _chunks,
    "blockwise_overlay": _blocks,
    "packed_sequence_mask_function": _sequences,
    "add_offsets_to_mask_function": _moved,
}


def padding_rule(is_token: Array, kv_offset: int, kv_length: int) -> Mask:
    """Return the rule that keys are tokens and no padding.

    Parameters
    ----------
    is_token : array
        ``(B, S)``, True where there is a token. Positions behind `S` are padding.
    kv_offset, kv_length : int
        The position of the first key, and how many there are.

    Returns
    -------
    Mask
        Lengths, where the tokens of each batch item lie side by side, so that tiles of padding are skipped.
    """
    seen = is_token[:, kv_offset : kv_offset + kv_length]
    seen = torch.nn.functional.pad(seen, (0, kv_length - seen.shape[-1]))
    counts = seen.sum(-1)
    starts = torch.where(counts > 0, seen.int().argmax(-1), 0)
    ends = starts + counts
    places = torch.arange(kv_length, device=seen.device)
    if not bool((seen == ((places >= starts[:, None]) & (places < ends[:, None]))).all()):
        return ArrayMask(seen[:, None, None, :])
    start, end = map(_one_or_each, (starts, ends))
    return conjunction(
        [
            EVERYTHING if isinstance(end, int) and end == kv_length else LengthMask(end),
            EVERYTHING if isinstance(start, int) and start == 0 else ~LengthMask(start),
        ]
    )


def _one_or_each(numbers: Array) -> Any:
    """Return one number as an int where all batch items have the same, else the array."""
    found = numbers.unique()
    return int(found) if found.numel() == 1 else numbers
