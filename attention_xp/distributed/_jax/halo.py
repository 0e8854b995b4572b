"""Ring attention along a window: each device gets from its neighbours the keys that its window reaches, and no others."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from attention_xp._typing import Array
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._jax.ranks import Ranks, partial_result, swapped
from attention_xp.distributed._layouts import Stretch

__all__ = ["Halo", "halo_attention", "halo_of"]


class Halo(NamedTuple):
    """How many keys before and behind its own a device attends."""

    left: int
    right: int


def halo_of(ranks: Ranks, call: Call) -> Halo | None:
    """Return how far the window of a call reaches, where it is known and not all keys are within reach of a device."""
    band, options = call.band, call.options
    offsets = options.get("query_offset", 0), options.get("key_offset", 0)
    is_plain = all(isinstance(offset, int) for offset in offsets) and "key_positions" not in options
    if ranks.layout != "contiguous" or ranks.Sq != ranks.Sk or not is_plain or band[0] is None or band[1] is None:
        return None
    shift = offsets[0] - offsets[1]
    halo = Halo(max(band[0] - shift, 0), max(band[1] + shift, 0))
    return halo if sum(halo) + ranks.Sk // ranks.n < ranks.Sk else None


def halo_attention(
    ranks: Ranks,
    halo: Halo,
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    dropout_rate: Any,
    options: dict[str, Any],
) -> tuple[Array, Array]:
    """Return output and log-sum-exp in the dtype of the computation; JAX differentiates what is sent."""
    key, value = (swapped(lambda x: _with_neighbours(x, ranks, halo), x) for x in (key, value))
    size = ranks.Sk // ranks.n
    (rows,) = ranks.rows()
    keys = Stretch(rows.whole.start - halo.left, halo.left + size + halo.right)
    call = ranks.call(mask, dropout_rate, options, cut=_within)
    mask, given = call.block(Rows(rows.whole, Stretch(0, size)), keys, with_sinks=False)
    columns = keys.start + jnp.arange(keys.size, dtype=jnp.int32)
    is_key = (columns >= 0) & (columns < ranks.Sk)
    positions = columns + call.options.get("key_offset", 0)
    given = {**given, "key_offset": None, "key_positions": jnp.where(is_key, positions, -1)}
    return partial_result(query.astype(key.dtype), key, value, mask, given)


def _within(array: Array, stretch: Stretch, axis: int) -> Array:
    """Cut a stretch that may begin before the array or end behind it: there, its first or its last entry is repeated."""
    places = jnp.clip(stretch.start + jnp.arange(stretch.size, dtype=jnp.int32), 0, array.shape[axis] - 1)
    return jnp.take(array, places, axis=axis)


def _with_neighbours(x: Array, ranks: Ranks, halo: Halo) -> Array:
    """Return the numbers of this device between those that its neighbours send: as few as possible, zeros at the ends."""
    size = x.shape[-2]

    def sent(reach: int, side: int) -> list[Array]:
        pieces = []
        for away in range(1, -(-reach // size) + 1):
            count = min(size, reach - (away - 1) * size)
            piece = (
                lax.slice_in_dim(x, size - count, size, axis=-2) if side < 0 else lax.slice_in_dim(x, 0, count, axis=-2)
            )
            pairs = [(rank, rank - side * away) for rank in range(ranks.n) if 0 <= rank - side * away < ranks.n]
            pieces.append(lax.ppermute(piece, ranks.group, pairs))
        return pieces

    return jnp.concatenate([*reversed(sent(halo.left, -1)), x, *sent(halo.right, 1)], axis=-2)
