"""Attention in JAX to the keys of all devices, gathered."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from attention_xp._typing import Array
from attention_xp.distributed._jax.ranks import How, Ranks, dynamic_cut, finished, partial_result, spread, swapped
from attention_xp.distributed._layouts import Layout, Stretch

__all__ = ["gathered_attention"]


def gathered_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    dropout_rate: Any,
    options: dict[str, Any],
    *,
    group: str,
    layout: Layout,
    return_lse: bool,
    timeout: float | None,
) -> Any:
    """Gather keys and values, and attend with the rows of each device; see the function of the package."""
    how = How(group, layout, return_lse, timeout)
    ranks = Ranks.of(query, key, mask, options, how)
    call = ranks.call(mask, dropout_rate, options)

    def gathered(x: Array) -> Array:
        return ranks.in_order(lax.all_gather(x, ranks.group, axis=x.ndim - 2, tiled=True))

    key, value = (swapped(gathered, x) for x in spread((key, value), ranks))
    wide = query.astype(key.dtype)
    parts = []
    for rows in ranks.rows():
        of_rows, given = call.block(rows, Stretch(0, ranks.Sk), with_sinks=False)
        parts.append(partial_result(dynamic_cut(wide, rows.shard, -2), key, value, of_rows, given))
    output, lse = (
        jnp.concatenate(pair, axis=axis) for pair, axis in zip(zip(*parts, strict=True), (-2, -1), strict=True)
    )
    return finished(output, lse, ranks.rows(), options, query.dtype, how)
