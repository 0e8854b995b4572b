"""Which attention weights survive dropout: one draw per batch item, head, query position and key position.

A block of the generator serves two queries and two keys. Under the key of batch item and head, the counter
``(q // 2, k // 2)`` gives two words, of the even and of the odd key; the lower half of a word is for the even query,
the upper half for the odd one.
"""

from typing import Any

from attention_xp._backend.shapes import filled_up
from attention_xp._random.threefry import KEY, threefry
from attention_xp._typing import Array, Device, Namespace

__all__ = ["LARGEST_RATE", "head_key", "smallest_draw", "survivors", "survivors_one_by_one"]

_HALF = 2**16
LARGEST_RATE = 1.0 - 1.0 / _HALF  # with any above, no weight would survive to be scaled up


def head_key(seed: tuple[Any, Any], *, b: Array, h: Array) -> tuple[Array, Array]:
    """Return the key of the draws of one batch item and head, for arrays of both."""
    return threefry(seed, (b, h), rounds=KEY)


def smallest_draw(rate: float) -> int:
    """Return the smallest of the 65536 draws with which a weight survives."""
    return round(rate * _HALF)


def survivors(
    key: tuple[Any, Any], rate: float, first: tuple[Any, Any], sizes: tuple[int, ...], *, xp: Namespace, device: Device
) -> Array:
    """Return where weights survive, (..., 2 * (m // 2 + 1), 2 * (n // 2 + 1)), from the even positions before `first` on.

    `first` may be traced; `sizes` are (m, n).
    """
    rows, columns = (
        filled_up(
            xp, xp.arange(size // 2 + 1, dtype=xp.int32, device=device) + (start >> 1), key[0].ndim, behind=behind
        )
        for start, size, behind in zip(first, sizes, (1, 0), strict=True)
    )
    words = threefry(key, (rows, columns))  # each (..., m // 2 + 1, n // 2 + 1)
    limit = smallest_draw(rate)
    halves = ([((word >> shift) & (_HALF - 1)) >= limit for shift in (0, 16)] for word in words)
    keep = xp.stack([xp.stack(pair, axis=-2) for pair in halves], axis=-1)
    return xp.reshape(keep, (*keep.shape[:-4], 2 * keep.shape[-4], 2 * keep.shape[-2]))  # from (..., m, 2, n, 2)


def survivors_one_by_one(key: tuple[Any, Any], rate: float, q_idx: Array, kv_idx: Array, *, xp: Namespace) -> Array:
    """Return where weights survive, for positions in any order, at the price of a block for each."""
    even, odd = threefry(key, (q_idx >> 1, kv_idx >> 1))
    word = xp.where((kv_idx & 1) == 0, even, odd)
    return ((word >> ((q_idx & 1) * 16)) & (_HALF - 1)) >= smallest_draw(rate)
