"""All queries on every rank, each with its own keys."""

from typing import Any

import torch

from attention_xp._attention import flash_attention
from attention_xp._merge import merge_attention
from attention_xp._typing import Array
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._layouts import Stretch, cut, stretches
from attention_xp.distributed._torch.collectives import by_chunks, shared
from attention_xp.distributed._torch.setup import finished, prepared
from attention_xp.distributed._torch.slopes import wide

__all__ = ["merged_attention"]


def merged_attention(
    query: Array, key: Array, value: Array, mask: Any, dropout_rate: Any, options: Any, **how: Any
) -> Any:
    """Return all rows, (..., H, Sq, Dv), with `return_lse` also their log-sum-exp."""
    given = prepared("merged_attention", query, key, value, mask, dropout_rate, options, **how, has_own_rows=False)
    ranks, query, (Sq, Sk) = given.ranks, given.query, (query.shape[-2], key.shape[-2] * given.ranks.n)
    call = Call(given.mask, dropout_rate, given.options, Sq=Sq, Sk=Sk)
    query, rows, parts = shared(query, ranks, "query"), Rows(Stretch(0, Sq), Stretch(0, Sq)), []
    for i, keys in enumerate(Rows.of(stretches(ranks.n, ranks.rank, Sk, given.layout))):
        if i > 0 and not call.any_allowed(rows, keys.whole):
            continue
        mask, options = call.block(rows, keys.whole, with_sinks=ranks.rank == i == 0)
        own, values = (cut(x, keys.shard, -2) for x in (given.key, given.value))
        parts.append(
            flash_attention(query, own, values, mask, **options, return_lse=True, output_dtype=wide(query.dtype))
        )
    output, lse = _merged_over_ranks(*merge_attention(*zip(*parts, strict=True)), given.ranks)
    return finished(given, output.to(query.dtype), lse, return_lse=how["return_lse"])


def _merged_over_ranks(output: Array, lse: Array, ranks: Any) -> tuple[Array, Array]:
    """Merge what all ranks have found: each rank merges some of the rows, and hands them to all."""

    def merged(parts: Array) -> Array:
        outputs, lses = (list(x) for x in (parts[..., :-1], parts[..., -1]))
        return _joined(*merge_attention(outputs, lses))

    rows = by_chunks(_joined(output, lse).flatten(0, -2), merged, ranks, "merging rows")
    return rows[:, :-1].reshape(output.shape), rows[:, -1].reshape(lse.shape)


def _joined(output: Array, lse: Array) -> Array:
    return torch.cat([output, lse[..., None]], -1)  # (..., Dv + 1)
