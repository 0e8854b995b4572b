"""Attention in JAX of few rows, which all devices hold, to keys that are shared out: for decoding."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from attention_xp._merge import weighted
from attention_xp._softmax import largest, log_sum, nonzero, relative_to
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
    outputs, lses = zip(*parts, strict=True)
    return finished(*_merged(outputs, lses, ranks.group), [rows], options, query.dtype, how)


def _merged(outputs: Sequence[Array], lses: Sequence[Array], group: str) -> tuple[Array, Array]:
    """Merge the parts of all devices, as `merge_attention` does those of one; the result is the same on all."""
    logs = jnp.stack(lses)  # (parts, ..., H, Sq)
    peak = lax.pmax(largest(lax.stop_gradient(logs), 0, jnp), group)
    shares, shift = relative_to(peak, logs, xp=jnp)
    # The division comes last, so that no device waits for the total before it sends its output.
    total, output = lax.psum((jnp.sum(shares, axis=0), weighted(shares, logs, outputs)), group)
    lse = log_sum(total, jnp.squeeze(shift, axis=0), xp=jnp)
    return output / jnp.expand_dims(nonzero(total, xp=jnp), axis=-1), lse
