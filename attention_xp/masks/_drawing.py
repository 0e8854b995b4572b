"""Masks outside of attention: as arrays, their density, pictures, and whether they allow a pair of some ranges."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from numbers import Integral
from typing import Any

from attention_xp._backend.libraries import common_namespace, creation_namespace, device as device_of, is_numpy
from attention_xp._backend.values import as_int32
from attention_xp._checks.arrays import check_integers
from attention_xp._checks.numbers import check_count, check_position
from attention_xp._scores.frame import Frame, frame_of
from attention_xp._scores.region import Region, span_between
from attention_xp._scores.rule import arrays_of, on_host
from attention_xp._typing import Array, Device, DType, Namespace
from attention_xp.masks._arrays import _mask_of
from attention_xp.masks._pairs import Pairs, parts_of

__all__ = ["any_allowed", "density", "drawn", "pictured", "shares_of_blocks", "tile_kinds", "title", "to_array"]

_SIDE = 32  # of a picture, in characters
_BLOCK = 256  # rows and keys of a block whose pairs are counted together
_PAIRS_AT_ONCE = 2**22


_Range = tuple[int, int]  # half open


def _frame(
    mask: Pairs, sizes: tuple[int, int], offsets: tuple[int, int], xp: Namespace, device: Device | None
) -> Frame:
    """Return the frame of scores with the leading axes of a mask."""
    query = xp.empty((sizes[0], 0), dtype=xp.float32, device=device)
    lead = mask.lead
    frame = frame_of(xp, query, lead[:-1], lead[-1] if lead else None, sizes[1])
    return replace(frame, query_offset=offsets[0], key_offset=offsets[1])


def _sizes(Sq: Any, Sk: Any, query_offset: Any) -> tuple[int, int, int]:
    return (
        check_count("Sq", Sq, low=0),
        check_count("Sk", Sk, low=0),
        check_position("query_offset", query_offset),
    )


def to_array(
    mask: Pairs,
    Sq: int,
    Sk: int,
    query_offset: int,
    xp: Namespace | None,
    device: Device | None,
    dtype: DType | str,
    key_offset: int = 0,
) -> Array:
    """Evaluate a mask for all pairs; see `Mask.to_array`."""
    Sq, Sk, query_offset = _sizes(Sq, Sk, query_offset)
    own = next((a for a in _arrays(mask) if not is_numpy(a)), None)
    library = creation_namespace(None) if own is None else common_namespace(array=own)
    xp = library if xp is None else creation_namespace(xp)
    if device is None and own is not None and xp is library:
        device = device_of(own)
    frame = _frame(mask, (Sq, Sk), (query_offset, key_offset), xp, device)
    mask.check(xp, frame.query, frame.batch, frame.heads)
    region = Region.whole(frame)
    shape = (1,) * (len(mask.lead) == 1) + region.sizes
    keep = xp.broadcast_to(mask.pairs(region), shape)
    keep = xp.asarray(keep, device=device_of(frame.query), copy=True)  # not a broadcast view: it may be written to
    return _mask_of(xp, keep, dtype)


def _arrays(mask: Pairs) -> Iterator[Array]:
    """Yield the arrays of a combination of masks."""
    yield from (array for _, array in arrays_of(mask))
    for part in parts_of(mask):
        yield from _arrays(part)


def density(mask: Pairs, Sq: int, Sk: int, query_offset: int, key_offset: int = 0) -> float:
    """Count block by block; see `Mask.density`."""
    Sq, Sk, query_offset = _sizes(Sq, Sk, query_offset)
    counted = _counted(mask, (0, Sq), (0, Sk), (query_offset, key_offset), (_BLOCK, _BLOCK))
    allowed = sum(int(counts.sum()) for counts in counted)
    pairs = math.prod(mask.lead) * Sq * Sk
    return allowed / pairs if pairs else 0.0


def any_allowed(mask: Pairs, rows: Any, keys: Any, query_offset: Any, key_offset: Any) -> Any:
    """Look into a rectangle block by block, or ask `reach` where its bounds are arrays; see `Mask.any_allowed`."""
    rows, keys = _range("rows", rows), _range("keys", keys)
    offsets = _bound("query_offset", query_offset), _bound("key_offset", key_offset)
    arrays = [bound for bound in (*rows, *keys, *offsets) if not isinstance(bound, int)]
    if arrays:
        xp = common_namespace(**{f"bound {i}": array for i, array in enumerate(arrays)})
        rows, keys, offsets = (_as_int32(xp, pair) for pair in (rows, keys, offsets))
        possible = mask.reach(span_between(xp, rows, keys, offsets))[0]
        return (rows[0] < rows[1]) & (keys[0] < keys[1]) & possible
    if rows[0] >= rows[1] or keys[0] >= keys[1]:
        return False
    if _may_depend_on_items(mask):
        xp = creation_namespace(None)
        pairs = (tuple(xp.asarray(bound, device="cpu") for bound in pair) for pair in (rows, keys, offsets))
        return bool(mask.reach(span_between(xp, *pairs))[0])
    return any(counts.any() for counts in _counted(mask, rows, keys, offsets, (_BLOCK, _BLOCK)))


def _may_depend_on_items(mask: Pairs) -> bool:
    """Whether a function of batch items or heads, of which nobody said how many there are, is a part of a mask."""
    parts = parts_of(mask)
    return any(map(_may_depend_on_items, parts)) if parts else not mask.tells and mask.lead == ()


def _as_int32(xp: Namespace, pair: tuple[Any, Any]) -> tuple[Any, Any]:
    first, second = (x if isinstance(x, int) else as_int32(xp, x) for x in pair)
    return first, second


def _range(name: str, given: Any) -> tuple[Any, Any]:
    """Return a pair of bounds; ints are not below 0."""
    if not isinstance(given, tuple | list):
        raise TypeError(f"{name} must be a pair (start, stop), got {type(given).__name__}")
    if len(given) != 2:
        raise ValueError(f"{name} must be a pair (start, stop), got {len(given)} numbers")
    start, stop = (_bound(name, bound, low=0) for bound in given)
    return start, stop


def _bound(name: str, given: Any, **limits: int) -> Any:
    """Return an int, or an integer array as it is."""
    if isinstance(given, Integral) or not hasattr(given, "dtype"):
        return check_position(name, given, **limits)
    check_integers(common_namespace(**{name: given}), name, given, "ints or integer arrays")
    return given


def _counted(
    mask: Pairs, rows: _Range, keys: _Range, offsets: tuple[int, int], block: tuple[int, int]
) -> Iterator[Any]:
    """Yield for each row of blocks the number of allowed pairs, (items, key blocks)."""
    import numpy as np  # noqa: PLC0415  # the import of the package loads no array library

    mask = on_host(mask)
    whole = Region.whole(_frame(mask, (rows[1], keys[1]), offsets, creation_namespace(None), None))
    items = math.prod(mask.lead)
    left = np.arange(*keys, block[1])
    right = np.minimum(left + block[1], keys[1])
    for top in range(*rows, block[0]):
        bottom = min(top + block[0], rows[1])
        span = span_between(np, (top, bottom), (left, right), offsets)
        possible, certain = (np.broadcast_to(np.asarray(answer), left.shape) for answer in mask.reach(span))
        counts = np.tile(certain * (right - left) * (bottom - top), (items, 1))
        for j in np.flatnonzero(possible & ~certain):
            counts[:, j] = _evaluated(mask, whole, (top, bottom), (int(left[j]), int(right[j])))
        yield counts


def _evaluated(mask: Pairs, whole: Region, rows: tuple[int, int], columns: tuple[int, int]) -> Any:
    """Count the allowed pairs of a rectangle by evaluating the mask, (items,)."""
    import numpy as np  # noqa: PLC0415

    items, total = math.prod(mask.lead), 0
    step = max(1, _PAIRS_AT_ONCE // (items * (columns[1] - columns[0]) or 1))
    for top in range(rows[0], rows[1], step):
        region = whole.part((top, min(top + step, rows[1])), columns)
        allowed = np.broadcast_to(mask.pairs(region), region.sizes)
        total = total + np.count_nonzero(np.reshape(allowed, (items, math.prod(region.sizes[-2:]))), axis=1)
    return total


def drawn(mask: Pairs, sizes: tuple[int, int], query_offset: int) -> str:
    """Return a picture of the first batch item and head in characters, under a title."""
    none, some, every = "·▒█" if _can_show("·▒█") else ".+#"
    shares = shares_of_blocks(mask, sizes, query_offset)
    lines = ["".join(none if x == 0.0 else every if x == 1.0 else some for x in line) for line in shares]
    heading = title(mask, sizes)
    if not _can_show(heading):
        heading = heading.encode("ascii", "backslashreplace").decode()
    return "\n".join([heading, *lines])


def pictured(mask: Pairs) -> str:
    """Return a picture of the first batch item and head as SVG: the darker a square, the more of its pairs are allowed."""
    sizes = mask.extent
    shares = list(shares_of_blocks(mask, sizes, 0))
    squares = [
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{share:.3g}"/>'
        for y, line in enumerate(shares)
        for x, share in enumerate(line)
        if share
    ]
    rows, columns, heading = len(shares), max(map(len, shares), default=0), escape(title(mask, sizes))
    return (
        f'<figure style="margin:0"><figcaption>{heading}</figcaption><svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'width="{8 * columns}" height="{8 * rows}" viewBox="0 0 {columns} {rows}" shape-rendering="crispEdges" '
        f'style="background:#fff;outline:1px solid #888"><title>{heading}</title><g fill="#1f4e79">{"".join(squares)}</g>'
        "</svg></figure>"
    )


def shares_of_blocks(
    mask: Pairs, sizes: tuple[int, int], query_offset: int, side: int = _SIDE, key_offset: int = 0
) -> Iterator[list[float]]:
    """Yield the share of allowed pairs in each block of a line of blocks, of the first batch item and head.

    There are at most `side` lines of as many blocks.
    """
    Sq, Sk, query_offset = _sizes(*sizes, query_offset)
    block = -(-Sq // side) or 1, -(-Sk // side) or 1
    counted = _counted(mask, (0, Sq), (0, Sk), (query_offset, key_offset), block)
    for counts, height in zip(counted, _lengths(Sq, block[0]), strict=True):
        yield [int(n) / (height * width) for n, width in zip(counts[0], _lengths(Sk, block[1]), strict=True)]


def tile_kinds(
    mask: Pairs, sizes: tuple[int, int], query_offset: int, tile: tuple[int, int], key_offset: int = 0
) -> Any:
    """Return what a rule says beforehand of each tile, (tiles, tiles): 0 is empty, 2 is full, 1 has to be evaluated.

    The answers are those of `reach` for the first batch item and head.
    """
    import numpy as np  # noqa: PLC0415

    (Sq, Sk), (height, width) = sizes, tile
    top, left = np.arange(0, Sq, height)[:, None], np.arange(0, Sk, width)[None, :]
    first = 0 if mask.lead else None
    rows, keys = (top, np.minimum(top + height, Sq)), (left, np.minimum(left + width, Sk))
    possible, certain = on_host(mask).reach(span_between(np, rows, keys, (query_offset, key_offset), first, first))
    shape = (top.size, left.size)
    return np.broadcast_to(possible, shape).astype(int) + np.broadcast_to(possible & certain, shape)


def title(mask: Pairs, sizes: tuple[int, int]) -> str:
    """Return the title of a picture of a mask."""
    first = ", first batch item and head" if math.prod(mask.lead) > 1 else ""
    return f"{mask!r}: {sizes[0]} queries x {sizes[1]} keys{first}"


def _can_show(text: str) -> bool:
    """Whether the standard output can print all characters of a text; one without an encoding can."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _lengths(size: int, block: int) -> list[int]:
    return [min(block, size - start) for start in range(0, size, block)]
