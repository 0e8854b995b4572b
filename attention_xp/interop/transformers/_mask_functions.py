"""Mask functions of transformers, and padding, as rules that are never materialised."""

import inspect
from collections.abc import Callable, Iterable
from functools import reduce
from operator import and_, or_
from typing import Any, NamedTuple, TypeAlias

import torch
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from transformers import masking_utils

from attention_xp._typing import Array
from attention_xp.interop._border import as_index
from attention_xp.masks import ArrayMask, CausalMask, FunctionMask, LengthMask, Mask, SegmentMask, WindowMask
from attention_xp.masks._position_rules import SameChunk

__all__ = ["EVERYTHING", "conjunction", "padding_rule", "rule_of", "translated"]

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
    return translated(mask_function, as_index("kv_offset", kv_offset), is_mapped=True)


class _Place(NamedTuple):
    """How a mask function sees rows and columns."""

    shift: int  # the position of the first key
    is_mapped: bool  # whether a function that is not known is called with indices without axes
    positions: Array | None = None  # (B, S): in packed sequences, what it is given in place of positions


def translated(mask_function: MaskFunction, shift: int, *, is_mapped: bool) -> Mask:
    """Return the rule of a mask function; functions that are not known are mapped, or called with arrays that broadcast."""
    return _rule(mask_function, _Place(shift, is_mapped))


def _rule(mask_function: MaskFunction, place: _Place) -> Mask:
    if mask_function is masking_utils.causal_mask_function:
        return CausalMask()
    if mask_function is masking_utils.bidirectional_mask_function:
        return EVERYTHING
    translate = _KNOWN.get(_made_by(mask_function))
    rule = None if translate is None else translate(place, _Captured(mask_function))
    return FunctionMask(_Asked(mask_function, place)) if rule is None else rule


def _made_by(mask_function: MaskFunction) -> str | None:
    """Return the name of the function of transformers that has made this one."""
    if getattr(mask_function, "__module__", None) != masking_utils.__name__:
        return None
    return getattr(mask_function, "__qualname__", "").partition(".<locals>.")[0]


class _Captured:
    """What a mask function has captured, as attributes."""

    def __init__(self, mask_function: MaskFunction) -> None:
        vars(self).update(inspect.getclosurevars(mask_function).nonlocals)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a mask function of transformers has not captured {name}: this version is not known")


class _Asked:
    """A mask function as `mask_mod`: positions count from the first key, and the head is 0."""

    def __init__(self, mask_function: MaskFunction, place: _Place) -> None:
        self.mask_function, self.place = mask_function, place
        self.__name__ = getattr(mask_function, "__qualname__", type(mask_function).__name__)

    def __call__(self, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        """Return whether pairs are allowed."""
        if not isinstance(q_idx, torch.Tensor):  # of NumPy, where a rule is drawn or measured
            return self(*map(torch.as_tensor, (b, h, q_idx, kv_idx))).numpy()
        shift, is_mapped, positions = self.place
        b, q_idx, kv_idx = b.long(), q_idx.long() + shift, kv_idx.long() + shift
        if positions is not None:
            q_idx, kv_idx = positions[b, q_idx], positions[b, kv_idx]
        indices = b, torch.zeros_like(h, dtype=torch.int64), q_idx, kv_idx
        if not is_mapped:
            return self.mask_function(*indices)
        indices = torch.broadcast_tensors(*indices)
        with TransformGetItemToIndex():  # what looks up an entry by an index without axes
            flat = torch.vmap(self.mask_function)(*(index.reshape(-1) for index in indices))
        return flat.reshape(indices[0].shape)


def _all_of(place: _Place, captured: Any) -> Mask:
    functions = captured.mask_functions
    sequences = [_Captured(f).packed_sequence_mask for f in functions if _made_by(f) == "packed_sequence_mask_function"]
    return conjunction(_rule_inside(sequences, f, place) for f in functions)


def _rule_inside(sequences: list[Array], mask_function: MaskFunction, place: _Place) -> Mask:
    """Return a rule for pairs inside of packed sequences: of a function of positions, which differ there as rows do.

    Transformers joins such a function with the rule that sequences attend themselves.
    """
    is_remapped = _made_by(mask_function) == "remap_positions_for_packed_sequence"
    if is_remapped and place.shift == 0 and place.positions is None:
        captured = _Captured(mask_function)
        positions = captured.position_ids
        begins = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1) != 1
        if any(torch.equal(ids, begins.cumsum(-1)) for ids in sequences):
            return _rule(captured.mask_function, place._replace(positions=positions))
    return _rule(mask_function, place)


def _any_of(place: _Place, captured: Any) -> Mask:
    rules = [_rule(f, place) for f in captured.mask_functions]
    return EVERYTHING if EVERYTHING in rules else reduce(or_, rules) if rules else ~EVERYTHING


def conjunction(rules: Iterable[Mask]) -> Mask:
    """Return the rule that all rules allow a pair."""
    kept = [rule for rule in rules if rule != EVERYTHING]
    return reduce(and_, kept) if kept else EVERYTHING


def _window_to_the_left(_: _Place, captured: Any) -> Mask | None:
    width = captured.sliding_window
    return WindowMask(width - 1, None) if isinstance(width, int) and width > 0 else None


def _window_to_both_sides(_: _Place, captured: Any) -> Mask | None:
    width = captured.sliding_window
    return WindowMask(width, width) if isinstance(width, int) and width >= 0 else None


def _chunks(place: _Place, captured: Any) -> Mask:
    size, begin = captured.chunk_size, captured.left_padding
    if place.positions is not None:
        return SegmentMask((place.positions - begin[:, None]) // size)
    return SameChunk(size, _one_or_each((begin - place.shift) % size))


def _blocks(place: _Place, captured: Any) -> Mask | None:
    if place.positions is not None:
        return None
    ids = captured.block_sequence_ids[:, place.shift :]
    return SegmentMask(ids, torch.where(ids < 0, ids.min() - 1, ids))  # a negative id is that of no block


def _sequences(place: _Place, captured: Any) -> Mask | None:
    return SegmentMask(captured.packed_sequence_mask[:, place.shift :]) if place.positions is None else None


# What makes a mask function in `transformers.masking_utils`, and its translation; None where there is none.
_KNOWN: dict[str | None, Callable[[_Place, Any], Mask | None]] = {
    "and_masks": _all_of,
    "or_masks": _any_of,
    "sliding_window_overlay": _window_to_the_left,
    "sliding_window_bidirectional_overlay": _window_to_both_sides,
    "chunked_overlay": _chunks,
    "blockwise_overlay": _blocks,
    "packed_sequence_mask_function": _sequences,
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
    if kv_length == 0:
        return EVERYTHING
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
