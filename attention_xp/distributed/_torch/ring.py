"""The ring: keys and values of the other ranks arrive while a rank computes with those that it has."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch.autograd.function import once_differentiable

from attention_xp._attention import flash_attention
from attention_xp._engine.problem.options import AttentionOptions
from attention_xp._engine.problem.problem import Problem
from attention_xp._merge import merge_attention
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._typing import Array
from attention_xp.distributed._blocks import Call
from attention_xp.distributed._layouts import Layout, Stretch, cut
from attention_xp.distributed._torch.messages import Channel, Pending, Ranks
from attention_xp.distributed._torch.plan import Message, Piece, Ring
from attention_xp.distributed._torch.setup import Prepared, finished, prepared
from attention_xp.distributed._torch.slopes import Slopes, wide

__all__ = ["attended", "ring_attention"]


def ring_attention(
    query: Array, key: Array, value: Array, mask: Any, dropout_rate: Any, options: Any, **how: Any
) -> Any:
    """Return the rows of this rank, (..., H, Sq / n, Dv), with `return_lse` also their log-sum-exp."""
    given = prepared("ring_attention", query, key, value, mask, dropout_rate, options, **how)
    output, lse = attended(given, given.ranks, given.query, given.key, given.value, given.mask, given.options)
    return finished(given, output, lse, return_lse=how["return_lse"])


def attended(
    given: Prepared, ranks: Ranks, query: Array, key: Array, value: Array, mask: Any, options: dict[str, Any]
) -> tuple[Array, Array]:
    """Return output and log-sum-exp of the rows of this rank of a ring, which is that of a call or a part of its ranks."""
    rest, arrays = freeze((mask, *options.values()))
    template = _Template(ranks, given.layout, rest, tuple(options), given.dropout_rate)
    return _Attention.apply(template, query, key, value, *arrays)  # type: ignore[no-any-return]


class _Template(NamedTuple):
    """A call without its arrays, of which autograd has to know."""

    ranks: Ranks
    layout: Layout
    rest: Any
    names: tuple[str, ...]
    dropout_rate: Any

    def call(self, query: Array, key: Array, arrays: Any) -> Call:
        """Return the call of the whole with these arrays."""
        mask, *options = thaw(self.rest, list(arrays))
        Sq, Sk = (x.shape[-2] * self.ranks.n for x in (query, key))
        return Call(mask, self.dropout_rate, dict(zip(self.names, options, strict=True)), Sq=Sq, Sk=Sk)


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    """The ring forward, and once more round for the gradients."""

    @staticmethod
    def forward(ctx: Any, template: _Template, query: Array, key: Array, value: Array, *arrays: Any) -> Any:
        """Return output and log-sum-exp."""
        ranks, call = template.ranks, template.call(query, key, arrays)
        ring = Ring(call, ranks.rank, ranks.n, template.layout)
        _check(ring, query, key, value)
        merged: list[Any] = [None] * len(ring.rows)
        channel = ranks.channel("")

        def visit(step: int, pieces: list[Piece]) -> None:
            for i, piece, is_own in ring.blocks(step, pieces):
                rows = ring.rows[i]
                mask, options = call.block(rows, piece.keys, with_sinks=is_own)
                options |= {"return_lse": True, "output_dtype": wide(query.dtype)}
                part = flash_attention(cut(query, rows.shard, -2), piece.key, piece.value, mask, **options)
                merged[i] = part if merged[i] is None else merge_attention(*zip(merged[i], part, strict=True))

        _round(ring, channel, key, value, visit)
        output, lse = (torch.cat(parts, axis) for parts, axis in zip(zip(*merged, strict=True), (-2, -1), strict=True))
        output = output.to(query.dtype)
        ctx.template, ctx.ring, ctx.channel = template, ring, channel
        ctx.others = [None if isinstance(array, torch.Tensor) else array for array in arrays]
        tensors = [array for array in arrays if isinstance(array, torch.Tensor)]
        ctx.save_for_backward(query, key, value, output, lse, *tensors)
        ctx.set_materialize_grads(False)
        return output, lse

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Array | None, grad_lse: Array | None) -> tuple[Array | None, ...]:
        """Return the gradients of all arrays."""
        query, key, value, output, lse, *tensors = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        rest = iter(tensors)
        arrays = [_widened(next(rest)) if other is None else other for other in ctx.others]
        call = ctx.template.call(query, key, arrays)
        slopes = Slopes(call, ctx.ring, query, (output, lse, grad_output, grad_lse))
        of_keys = _sent_round(ctx.ring, ctx.channel.back(), slopes, key, value)
        found = (slopes.of_query, *of_keys, *map(slopes.of, arrays))
        # autograd casts a gradient to the dtype of its tensor
        return None, *(
            one if is_wanted else None for one, is_wanted in zip(found, ctx.needs_input_grad[1:], strict=True)
        )


def _check(ring: Ring, query: Array, key: Array, value: Array) -> None:
    """Refuse what `flash_attention` refuses, before anything is sent."""
    own, rows = ring.own_pieces(key, value)[0], ring.rows[0]
    mask, options = ring.call.block(rows, own.keys, with_sinks=True)
    rate: float = options.pop("dropout_rate")
    Problem.of(cut(query, rows.shard, -2), own.key, own.value, mask, rate, cast("AttentionOptions", options))


def _round(ring: Ring, channel: Channel, key: Array, value: Array, visit: Callable[[int, list[Piece]], None]) -> None:
    """Visit the keys and values of one rank after the other; those of the next one are on their way meanwhile.

    Nothing else keeps them, so that there are never more than those of two other ranks.
    """
    rank, n = ring.rank, channel.ranks.n
    pieces, message, packed = ring.own_pieces(key, value), (key, value), None
    for step in range(n):
        if step + 1 < n:
            receiver, owner = (rank + step + 1) % n, (rank - step - 1) % n
            wanted, asked = ring.reached[rank, owner], ring.reached[receiver, rank]
            if asked != packed:
                packed, message = asked, ring.packed(key, value, asked)
            arriving = ring.room(key, value, wanted)
            pending = channel.start({receiver: message}, {owner: arriving}, f"step {step + 1}")
        visit(step, pieces)
        if step + 1 < n:
            pending.wait()
            pieces = ring.unpacked(arriving, wanted)


def _sent_round(ring: Ring, channel: Channel, slopes: Slopes, key: Array, value: Array) -> tuple[Array, Array]:
    """Return the gradients of key and value: each rank sends what it finds for the keys of another one back to that."""
    rank, n, dtype = ring.rank, channel.ranks.n, wide(key.dtype)
    of_keys: Message = tuple(torch.zeros_like(x, dtype=dtype) for x in (key, value))
    returning: tuple[Pending, Message, list[Stretch]] | None = None

    def collect() -> None:
        if returning is None:
            return
        pending, message, wanted = returning
        pending.wait()
        for total, piece in zip(ring.pieces(*of_keys, wanted), ring.unpacked(message, wanted), strict=True):
            total.key.add_(piece.key)
            total.value.add_(piece.value)

    def visit(step: int, pieces: list[Piece]) -> None:
        nonlocal returning
        if step == 0:
            slopes.add(step, pieces, ring.own_pieces(*of_keys))
            return
        owner, receiver = (rank - step) % n, (rank + step) % n
        found = ring.room(key, value, ring.reached[rank, owner], dtype)
        slopes.add(step, pieces, ring.unpacked((found[0].zero_(), found[1].zero_()), ring.reached[rank, owner]))
        collect()
        wanted = ring.reached[receiver, rank]
        message = ring.room(key, value, wanted, dtype)
        pending = channel.start({owner: found}, {receiver: message}, f"gradients of step {step}", turn=1)
        returning = pending, message, wanted

    _round(ring, channel, key, value, visit)
    collect()
    return of_keys


def _widened(array: Array) -> Array:
    return array.to(wide(array.dtype)) if array.is_floating_point() else array
