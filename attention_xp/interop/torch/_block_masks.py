"""torch's block masks as rules."""

from typing import Any

import torch

from attention_xp.interop.torch._scalars import mask_over_tiles
from attention_xp.interop.torch._stored import stored
from attention_xp.masks import BlockMask, FunctionMask, Mask

__all__ = ["rule_from_block_mask"]


def rule_from_block_mask(block_mask: Any) -> Mask:
    """Return what a ``torch.nn.attention.flex_attention.BlockMask`` allows as a rule.

    Blocks that its tables leave out are skipped, its function is asked about pairs of the partial ones, and full ones are
    not asked about: as torch's kernels do. torch without a compiler asks the function about all pairs instead; for
    the masks of ``create_block_mask`` that is the same.

    What the function says is stored here, equal blocks once. It is asked in each call instead on a GPU, while torch compiles or
    maps, where it looks at batch items or heads of which the tables do not tell how many there are, and where more than 2**27
    pairs would be asked about.

    Parameters
    ----------
    block_mask : torch.nn.attention.flex_attention.BlockMask
        Its ``mask_mod`` is written for a single pair, and mapped over those of a tile.

    Returns
    -------
    Mask
        It combines with other rules, can be drawn, and serves every call while the block mask, and what its function has
        captured, stay as they are. Make it once for several calls.

    Raises
    ------
    TypeError
        If `block_mask` is of another class.

    References
    ----------
    ``torch.nn.attention.flex_attention`` of torch 2.13.

    Examples
    --------
    >>> from torch.nn.attention.flex_attention import create_block_mask
    >>> from attention_xp.interop.torch import rule_from_block_mask
    >>> causal = create_block_mask(lambda b, h, q, k: q >= k, None, None, 6, 6, device="cpu", BLOCK_SIZE=2)
    >>> rule_from_block_mask(causal).to_array(3, 3)
    array([[ True, False, False],
           [ True,  True, False],
           [ True,  True,  True]])
    """
    flex: Any = _flex()
    if not isinstance(block_mask, flex.BlockMask):
        raise TypeError(
            f"block_mask must be a torch.nn.attention.flex_attention.BlockMask, got {type(block_mask).__name__}"
        )
    partial = _layout(block_mask, block_mask.kv_num_blocks, block_mask.kv_indices)
    full = None
    if block_mask.full_kv_num_blocks is not None:
        full = _layout(block_mask, block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    if block_mask.mask_mod is not flex.noop_mask:
        known = stored(block_mask, partial, full)
        return _asked(block_mask, partial, full) if known is None else known
    return BlockMask(partial if full is None else partial | full, tuple(block_mask.BLOCK_SIZE))


def _flex() -> Any:
    from torch.nn.attention import flex_attention  # noqa: PLC0415  # it takes a second, and block masks have it loaded

    return flex_attention


def _layout(block_mask: Any, counts: torch.Tensor, indices: torch.Tensor) -> Any:
    """Return which blocks a table names: in each row, of so many first entries, the columns."""
    columns = -(-block_mask.seq_lengths[1] // block_mask.BLOCK_SIZE[1])
    places = torch.arange(indices.shape[-1], device=indices.device)
    # What a row does not name goes to one more column, which is cut off.
    named = torch.where(places < counts[..., None], indices, columns).to(torch.int64)
    layout = torch.zeros(*indices.shape[:-1], columns + 1, dtype=torch.bool, device=indices.device)
    layout = layout.scatter(-1, named, True)[..., :columns]
    while layout.ndim > 2 and layout.shape[0] == 1:  # one pattern for all
        layout = layout[0]
    if layout.device.type == "cpu" and not torch.compiler.is_compiling():
        return layout.numpy()  # is summarised once, and serves torch as well
    return layout


def _asked(block_mask: Any, partial: Any, full: Any) -> Mask:
    """Return the rule that asks the function of a block mask about the pairs of each tile."""
    size = tuple(block_mask.BLOCK_SIZE)
    batch, heads = (1, 1, *block_mask.kv_num_blocks.shape[:-1])[-2:]
    asked = BlockMask(partial, size) & FunctionMask(mask_over_tiles(block_mask.mask_mod), batch=batch, heads=heads)
    return asked if full is None else BlockMask(full, size) | asked
