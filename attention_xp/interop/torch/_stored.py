"""What the function of a block mask says of the partial blocks, stored."""

from typing import Any

import numpy as np
import torch

from attention_xp._backend.values import host_view
from attention_xp.interop.torch._scalars import axes_of, mask_over_blocks
from attention_xp.masks import Mask
from attention_xp.masks._pattern_rule import PatternMask

__all__ = ["stored"]

_AT_ONCE = 2**20  # pairs that the function is asked about together
_MOST = 2**27  # pairs whose flags are kept while equal blocks are looked for


def stored(block_mask: Any, partial: Any, full: Any) -> Mask | None:
    """Return the rule that looks up what the function says of the pairs of the partial blocks; it is asked here, once.

    ``None`` where that cannot be known yet: while torch traces, on a GPU, and where the function depends on batch items or
    heads of which the tables do not tell how many there are. And where it would take too much memory.
    """
    if not isinstance(partial, np.ndarray) or partial.ndim > 4 or 0 in partial.shape:
        return None
    full = np.zeros_like(partial) if full is None else full
    lead = np.broadcast_shapes(partial.shape, full.shape)
    partial, full = np.broadcast_to(partial, lead), np.broadcast_to(full, lead)
    asked = partial & ~full
    with torch.no_grad():
        found = _flags_of_blocks(block_mask, asked)
    if found is None:
        return None
    flags, which = found
    numbers, patterns = _patterns(flags)
    table = full.astype(np.int32)
    table[asked] = numbers[which]
    return PatternMask(table, patterns)


def _flags_of_blocks(block_mask: Any, asked: Any) -> tuple[Any, Any] | None:
    """Return flags ``(blocks, n, m)``, and for each block that is asked for, in its order, which of them are its own."""
    mask_mod, (n, m) = block_mask.mask_mod, block_mask.BLOCK_SIZE
    zero = torch.zeros(1, dtype=torch.int64)
    axes = axes_of(mask_mod, [zero] * 4)
    lead = (1, 1, *asked.shape[:-2])[-2:]
    if any(axis in axes and length == 1 for axis, length in zip("bh", lead, strict=True)):
        return None
    # Blocks that differ in what the function does not look at are one.
    shape = *(n if axis in axes else 1 for axis, n in zip("bh", lead, strict=True)), *asked.shape[-2:]
    places = np.nonzero(asked.reshape(*lead, *asked.shape[-2:]))
    places = tuple(i if length > 1 else 0 * i for i, length in zip(places, shape, strict=True))
    names, which = np.unique(np.ravel_multi_index(places, shape), return_inverse=True)
    if len(names) * n * m > _MOST:
        return None
    flags = np.zeros((len(names), n, m), bool)
    of_blocks, step = mask_over_blocks(mask_mod), max(1, _AT_ONCE // (n * m))
    for start in range(0, len(names), step):
        some = slice(start, start + step)
        found = _answers(of_blocks, block_mask.seq_lengths, (n, m), np.unravel_index(names[some], shape))
        if found is None:
            return None
        flags[some] = found
    return flags, which


def _answers(of_blocks: Any, lengths: tuple[int, int], size: tuple[int, int], places: Any) -> Any:
    """Return the flags of some blocks; beyond the sequences, where the function may not be asked, nothing is allowed."""
    b, h, *blocks = places
    positions = [i[:, None] * n + np.arange(n) for i, n in zip(blocks, size, strict=True)]
    inside = [at < length for at, length in zip(positions, lengths, strict=True)]
    asked = (np.minimum(at, length - 1) for at, length in zip(positions, lengths, strict=True))
    flags = host_view(of_blocks(*map(torch.from_numpy, (b, h, *asked))))
    if flags is None or flags.dtype != bool or flags.shape != (len(b), *size):
        return None
    return flags & inside[0][:, :, None] & inside[1][:, None, :]


def _patterns(flags: Any) -> tuple[Any, Any]:
    """Return the number of the pattern of each block, and the patterns: nothing, everything, and others once each."""
    n, m = flags.shape[1:]
    patterns = [np.zeros((n, m), bool), np.ones((n, m), bool)]
    known = {np.packbits(pattern).tobytes(): number for number, pattern in enumerate(patterns)}
    numbers = np.empty(len(flags), np.int32)
    for i, pattern in enumerate(flags):
        numbers[i] = known.setdefault(np.packbits(pattern).tobytes(), len(patterns))
        if numbers[i] == len(patterns):
            patterns.append(pattern)
    return numbers, np.stack(patterns)
