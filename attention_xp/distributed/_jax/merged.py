"""Attention in JAX of few rows, which all devices hold, to keys that are shared out: for decoding."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from attention_xp._merge import merge_attention
from attention_xp._softmax import log_sum, nonzero
from attention_xp._typing import Array
from attention_xp.distributed._blocks import Rows
from attention_xp.distributed._jax.ranks import (
    How,
    Ranks,
    dynamic_cut,
    finished,
    partial_result,
    spread,
)
from attention_xp.distributed._layouts import Layout, Stretch

__all__ = ["merged_attention"]


def merged_attention(
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
    """Attend to the keys of each device, and merge the outputs of all; see the function of the package."""
    how = How(group, layout, return_lse, timeout)
    ranks = Ranks.of(query, key, mask, options, how, whole_rows=True)
    call = ranks.call(mask, dropout_rate, options)
    rows = Rows(Stretch(0, ranks.Sq), Stretch(0, ranks.Sq))
    query, key, value = spread((query, key, value), ranks)
    parts = []
    for keys in ranks.keys(ranks.rank):
        of_keys, given = call.block(rows, keys.whole, with_sinks=False)
        part = [dynamic_cut(x, keys.shard, -2) for x in (key, value)]
        parts.append(partial_result(query, part[0], part[1], of_keys, given))
    output, lse = merge_attention(*zip(*parts, strict=True))
    return finished(*_merged(output, lse, ranks.group), [rows], options, query.dtype, how)


def _merged(output: Array, lse: Array, group: str) -> tuple[Array, Array]:
    """Merge the parts of all devices, as `merge_attention` does those of one; the result is the same on all."""
    peak = lax.pmax(lax.stop_gradient(lse), group)
    shift = jnp.where(jnp.isfinite(peak), peak, 0.0)
    share = jnp.exp(lse - shift)
    total = lax.psum(share, group)
    known = jnp.where(jnp.expand_dims(share == 0.0, axis=-1), 0.0, output)
    whole = lax.psum(jnp.expand_dims(share, axis=-1) * known, group)
    return whole / jnp.expand_dims(nonzero(total, xp=jnp), axis=-1), log_sum(total, shift, xp=jnp)
