"""What the blocks of a rank contribute to gradients."""

from typing import Any

import torch

from attention_xp._gradients import attention_gradients
from attention_xp._typing import Array, DType
from attention_xp.biases import Bias
from attention_xp.distributed._blocks import Call
from attention_xp.distributed._layouts import Stretch, cut
from attention_xp.distributed._torch.plan import Piece, Ring

__all__ = ["Slopes", "wide"]


def wide(dtype: DType) -> DType:
    """Return the dtype of sums: float32 for 16-bit numbers."""
    return torch.promote_types(dtype, torch.float32)


class Slopes:
    """The gradients of the query of a rank and of the other arrays, as blocks add to them.

    Parameters
    ----------
    call : Call
        The call, with 16-bit arrays in float32.
    ring : Ring
        The shards.
    query : tensor
        Of this rank.
    results : tuple of tensor
        Of the rows of this rank, for all keys: output, log-sum-exp, and the gradients of both, the last one or None.
    """

    def __init__(self, call: Call, ring: Ring, query: Array, results: tuple[Array, Array, Array, Array | None]) -> None:
        self._call, self._ring, self._results = call, ring, results
        self._query = query.to(wide(query.dtype))
        self.of_query = torch.zeros_like(self._query)
        self._totals: dict[int, Array] = {}  # of other arrays, by their ids
        addends = {name: self._total(x) for name, x in (("mask", call.mask), ("bias", call.options.get("bias")))}
        self._addends = Call(addends["mask"], 0.0, {"bias": addends["bias"]}, Sq=call.Sq, Sk=call.Sk)
        scale = call.options.get("scale")
        self._scale = scale if isinstance(scale, torch.Tensor) else None

    def _total(self, array: Any) -> Array | None:
        """Return the sum for an array, to which a block adds; None for what is no floating tensor."""
        if not isinstance(array, torch.Tensor) or not array.is_floating_point():
            return None
        return self._totals.setdefault(id(array), torch.zeros_like(array))

    def of(self, array: Any) -> Array | None:
        """Return the gradient of an array of the call."""
        return self._totals.get(id(array))

    def add(self, step: int, pieces: list[Piece], found: list[Piece]) -> None:
        """Add what keys of a step contribute; their own gradients go to `found`."""
        ring, sums = self._ring, {one.keys: one for one in found}
        for i, piece, is_own in ring.blocks(step, pieces):
            rows = ring.rows[i]
            mask, options = self._call.block(rows, piece.keys, with_sinks=is_own)
            query = cut(self._query, rows.shard, -2)
            if self._scale is not None:
                query, options = query * self._scale, {**options, "scale": 1.0}
            key, value = (x.to(self._query.dtype) for x in piece[1:])
            output, lse, gradient, of_lse = self._lines(rows.shard)
            slopes = attention_gradients(query, key, value, output, lse, gradient, mask, grad_lse=of_lse, **options)
            sums[piece.keys].key.add_(slopes.key)
            sums[piece.keys].value.add_(slopes.value)
            self._add_of_query(i, slopes.query)
            self._add_others(i, piece, options, slopes)

    def _lines(self, rows: Stretch) -> tuple[Array, Array, Array, Array | None]:
        """Return the results of some rows."""
        output, lse, gradient, of_lse = self._results
        gradient = cut(gradient, rows, -2).to(self._query.dtype)
        return cut(output, rows, -2), cut(lse, rows, -1), gradient, None if of_lse is None else cut(of_lse, rows, -1)

    def _add_of_query(self, i: int, slope: Array) -> None:
        rows = self._ring.rows[i].shard
        if self._scale is not None:  # until here the gradient of the product of both
            of_scale = torch.sum(slope * cut(self._query, rows, -2))
            self._add(self._scale, of_scale)
            slope = slope * self._scale
        cut(self.of_query, rows, -2).add_(slope)

    def _add_others(self, i: int, piece: Piece, options: dict[str, Any], slopes: Any) -> None:
        mask, totals = self._addends.block(self._ring.rows[i], piece.keys, with_sinks=False)
        if mask is not None:
            mask.add_(slopes.mask)
        if "bias" in totals:
            totals["bias"].add_(slopes.bias)
        elif isinstance(options.get("bias"), Bias):
            for array, slope in zip(options["bias"].arrays, slopes.bias, strict=True):
                self._add(array, slope)
        if "sinks" in options:
            self._add(options["sinks"], slopes.sinks)

    def _add(self, array: Any, slope: Array) -> None:
        total = self._total(array)
        if total is not None:
            total.add_(slope)
