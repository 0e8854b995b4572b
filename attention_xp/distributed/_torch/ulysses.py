"""All rows of some heads on every rank, or on two axes the rows of a ring, of which each rank of the other axis has some heads."""

import math
from typing import Any

import torch

from attention_xp._attention import flash_attention
from attention_xp._typing import Array
from attention_xp.distributed._blocks import Call
from attention_xp.distributed._heads import Heads, of_heads
from attention_xp.distributed._layouts import shard_sequence, unshard_sequence
from attention_xp.distributed._torch.collectives import exchange, gathered
from attention_xp.distributed._torch.ring import attended
from attention_xp.distributed._torch.setup import Prepared, finished, prepared
from attention_xp.masks._mask import with_arrays

__all__ = ["ulysses_attention"]


def ulysses_attention(
    query: Array, key: Array, value: Array, mask: Any, dropout_rate: Any, options: Any, **how: Any
) -> Any:
    """Return the rows of this rank, (..., H, Sq / n, Dv), with `return_lse` also their log-sum-exp."""
    given = prepared(
        "ulysses_attention",
        query,
        key,
        value,
        mask,
        dropout_rate,
        options,
        **how,
        on_two_axes=True,
        is_differentiated_twice=True,
    )
    heads = _Heads(given)
    Sq, Sk = (x.shape[-2] * given.ranks.of for x in (given.query, given.key))
    Call(given.mask, dropout_rate, given.options, Sq=Sq, Sk=Sk)  # refuses what ranks could not agree on
    query, key, value = heads.of(given.query, "query"), heads.keys(given.key, "key"), heads.keys(given.value, "value")
    mask, some = heads.addend(given.mask, "mask"), heads.options()
    if len(given.axes) == 1:
        output, lse = flash_attention(query, key, value, mask, dropout_rate, **some, return_lse=True)
    else:  # the shards along the heads, one behind the other, are that of the ring
        output, lse = attended(given, given.axes[0], query, key, value, mask, some)
    del query, key, value, mask, some  # large as the shards of the call
    output, lse = heads.back(output, "output"), heads.back(lse[..., None], "lse")[..., 0]
    return finished(given, output, lse, return_lse=how["return_lse"])


class _Heads:
    """The heads of a rank, of a call whose ranks have rows of all heads."""

    def __init__(self, given: Prepared) -> None:
        self._given, self._ranks, self._layout = given, given.ranks, given.layout
        n, shape = given.ranks.n, tuple(given.query.shape)
        if len(shape) < 4 or shape[-3] % n:
            raise ValueError(
                f"query must have heads divisible by the number of ranks, {n}: expected (..., H, Sq, D), got {shape}"
            )
        self._all = shape[-3]
        self._count = self._all // n
        self._first = given.ranks.rank * self._count

    def keys(self, x: Array, name: str) -> Array:
        """Exchange rows of keys or values, of which there are first made as many heads as can be dealt out."""
        if x.ndim < 4 or self._all % x.shape[-3]:
            raise ValueError(f"{name} must have heads that divide those of query, {self._all}: got {tuple(x.shape)}")
        times = math.lcm(x.shape[-3], self._ranks.n) // x.shape[-3]
        return self.of(x if times == 1 else x.repeat_interleave(times, -3), name)

    def of(self, x: Array, name: str) -> Array:
        """Exchange rows of all heads for all rows of this rank's heads: (..., H, S / n, D) -> (..., H / n, S, D)."""
        parts = x.unflatten(-3, (self._ranks.n, -1)).movedim(-4, 0)
        return unshard_sequence(list(exchange(parts, self._ranks, f"exchanging heads of {name}")), layout=self._layout)

    def back(self, x: Array, name: str) -> Array:
        """Exchange all rows of this rank's heads for rows of all heads."""
        shards = shard_sequence(x, self._ranks.n, layout=self._layout)
        arrived = exchange(torch.stack(shards), self._ranks, f"exchanging heads of {name}")
        del shards
        return torch.cat(list(arrived), -3)

    def options(self) -> dict[str, Any]:
        """Return the options of a call with this rank's heads."""
        options = dict(self._given.options)
        ids = options.get("head_ids")
        options["head_ids"] = self._some(
            torch.arange(self._all, dtype=torch.int32, device=self._given.query.device) if ids is None else ids, -1
        )
        if "sinks" in options:
            options["sinks"] = self._some(options["sinks"], -1)
        if "bias" in options:
            options["bias"] = self.addend(options["bias"], "bias")
        return options

    def _some(self, x: Any, axis: int) -> Any:
        """Return the heads of this rank of an array with an axis of heads; others as they are."""
        has_heads = isinstance(x, torch.Tensor) and x.ndim >= -axis and x.shape[axis] == self._all
        return x.narrow(axis, self._first, self._count) if has_heads else x

    def addend(self, given: Any, name: str) -> Any:
        """Return a mask or bias for all rows of this rank's heads."""
        heads = Heads(self._first, self._all, self._given.options.get("head_ids"))
        return of_heads(with_arrays(given, lambda array: self._of_array(torch.as_tensor(array), name)), heads)

    def _of_array(self, array: Array, name: str) -> Array:
        """Return all rows of this rank's heads of an array, which may have neither rows of its own nor heads."""
        if array.shape[-2:-1] != (self._given.query.shape[-2],):
            return self._some(array, -3)
        if array.ndim > 2 and array.shape[-3] == self._all:
            return self.of(array, name)
        return unshard_sequence(list(gathered(array, self._ranks, f"gathering {name}")), layout=self._layout)
