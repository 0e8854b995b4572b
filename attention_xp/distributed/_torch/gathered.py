"""All keys and values on every rank."""

from typing import Any

import torch

from attention_xp._attention import flash_attention
from attention_xp._typing import Array
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._layouts import Stretch, cut, stretches, unshard_sequence
from attention_xp.distributed._torch.collectives import gathered
from attention_xp.distributed._torch.setup import finished, prepared

__all__ = ["gathered_attention"]


def gathered_attention(
    query: Array, key: Array, value: Array, mask: Any, dropout_rate: Any, options: Any, **how: Any
) -> Any:
    """Return the rows of this rank, (..., H, Sq / n, Dv), with `return_lse` also their log-sum-exp."""
    given = prepared(
        "gathered_attention", query, key, value, mask, dropout_rate, options, **how, is_differentiated_twice=True
    )
    ranks, layout = given.ranks, given.layout
    Sq, Sk = (x.shape[-2] * ranks.n for x in (given.query, given.key))
    call = Call(given.mask, dropout_rate, given.options, Sq=Sq, Sk=Sk)
    key, value = (
        unshard_sequence(list(gathered(x, ranks, f"gathering {name}")), layout=layout)
        for name, x in (("key", given.key), ("value", given.value))
    )
    parts = []
    for rows in Rows.of(stretches(ranks.n, ranks.rank, Sq, layout)):
        mask, options = call.block(rows, Stretch(0, Sk), with_sinks=True)
        parts.append(flash_attention(cut(given.query, rows.shard, -2), key, value, mask, **options, return_lse=True))
    output, lse = (torch.cat(x, axis) for x, axis in zip(zip(*parts, strict=True), (-2, -1), strict=True))
    return finished(given, output, lse, return_lse=how["return_lse"])
