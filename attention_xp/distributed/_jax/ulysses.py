"""Attention in JAX to the whole sequence, with some of the heads on each device."""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax

from attention_xp._attention import flash_attention
from attention_xp._checks.arrays import shapes
from attention_xp._engine.walkers.jax.loops import dynamic_cut
from attention_xp._typing import Array
from attention_xp.distributed._heads import Heads, of_heads
from attention_xp.distributed._jax.ranks import How, Ranks, spread, swapped
from attention_xp.distributed._jax.ring import attended
from attention_xp.distributed._layouts import Layout
from attention_xp.masks._mask import with_arrays

__all__ = ["ulysses_attention"]


def ulysses_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    dropout_rate: Any,
    options: dict[str, Any],
    *,
    group: Any,
    layout: Layout,
    return_lse: bool,
    timeout: float | None,
) -> Any:
    """Exchange rows for heads, attend, and exchange them back; see the function of the package."""
    whole = Ranks.of(query, key, mask, options, How(group, layout, return_lse, timeout), on_two_axes=True)
    whole.call(mask, dropout_rate, options)  # checks it
    ring, ranks = whole.along()
    exchange, dtype = _Exchange.of(ranks, query, key, options.get("head_ids")), query.dtype
    query, key, value = spread((query, key, value), whole)
    key, value = (exchange.repeated(x) for x in (key, value))
    arrays = exchange.to_heads(query).astype(key.dtype), key, value, exchange.own(mask), dropout_rate
    some = exchange.options(options)
    if ring is None:
        output, lse = flash_attention(*arrays, **some, output_dtype=dtype, return_lse=True)
    else:
        output, lse = attended(ring, *arrays, some, How(ring.group, layout, return_lse=True, timeout=None))
    output, lse = exchange.to_rows(output.astype(dtype)), exchange.to_rows(lse[..., None])[..., 0]
    return (output, lse) if return_lse else output


class _Exchange:
    """What each device gives away of its rows, and gets of its heads."""

    def __init__(self, ranks: Ranks, H: int, Hkv: int, head_ids: Any) -> None:
        self.ranks, self.H, self.times = ranks, H, math.lcm(Hkv, ranks.n) // Hkv
        self.first = ranks.rank * (H // ranks.n)
        self.ids = None if head_ids is None else jnp.asarray(head_ids).astype(jnp.int32)

    @classmethod
    def of(cls, ranks: Ranks, query: Array, key: Array, head_ids: Any) -> "_Exchange":
        """Check that there are heads for all devices."""
        if query.ndim < 3 or key.ndim < 3 or query.shape[-3] % ranks.n or query.shape[-3] % key.shape[-3]:
            raise ValueError(
                f"the number of heads must be divisible by that of ranks, {ranks.n}, and by that of key/value heads: "
                f"expected query (..., H, Sq, D) and key (..., Hkv, Sk, D), {shapes(query=query, key=key)}"
            )
        return cls(ranks, query.shape[-3], key.shape[-3], head_ids)

    def to_heads(self, x: Array) -> Array:
        """Return all rows of some heads: (..., H, S / n, D) -> (..., H / n, S, D)."""
        heads, rows = x.ndim - 3, x.ndim - 2
        return self.ranks.in_order(lax.all_to_all(x, self.ranks.group, heads, rows, tiled=True))

    def to_rows(self, x: Array) -> Array:
        """Return some rows of all heads: (..., H / n, S, D) -> (..., H, S / n, D)."""
        heads, rows = x.ndim - 3, x.ndim - 2
        return lax.all_to_all(self.ranks.in_ranks(x), self.ranks.group, rows, heads, tiled=True)

    def repeated(self, x: Array) -> Array:
        """Return all rows of the key/value heads of some heads; where they are too few for all devices, they are repeated."""
        if self.times == 1:
            return self.to_heads(x)
        return swapped(lambda x: self.to_heads(jnp.repeat(x, self.times, axis=-3)), x)

    def own(self, given: Any) -> Any:
        """Return a mask or a bias as it is for all rows of these heads."""
        heads = Heads(self.first, self.H, self.ids, dynamic_cut)
        return of_heads(with_arrays(given, self._of_pairs), heads)

    def _of_pairs(self, array: Array) -> Array:
        """Return an array of this device's rows and all heads as one of all rows and these heads."""
        array = spread(jnp.asarray(array), self.ranks)
        has_rows, has_heads = (array.ndim >= -axis and array.shape[axis] != 1 for axis in (-2, -3))
        if has_rows and has_heads:
            return self.to_heads(array)
        if has_rows:
            gathered = partial(lax.all_gather, axis_name=self.ranks.group, axis=array.ndim - 2, tiled=True)
            return self.ranks.in_order(gathered(array))
        return self._of_heads(array, -3) if has_heads else array

    def _of_heads(self, array: Array, axis: int) -> Array:
        return lax.dynamic_slice_in_dim(array, self.first, self.H // self.ranks.n, axis=axis)

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a call for these heads."""
        ids = jnp.arange(self.H, dtype=jnp.int32) if self.ids is None else self.ids
        options = {**given, "head_ids": self._of_heads(ids, 0), "bias": self.own(given.get("bias"))}
        if given.get("sinks") is not None:
            options["sinks"] = self._of_heads(given["sinks"], 0)
        return options
