"""Ring attention in JAX: keys and values go round, and so do their gradients on the way back.

The steps are a loop of the program, which therefore does not grow with the number of devices. Its derivative is not that of
JAX, which would keep what every step has seen, but a second loop, over the output and the log-sum-exp of the whole.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attention_xp._backend.sharding import spread_like
from attention_xp._gradients import attention_gradients
from attention_xp._merge import merge_attention
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._typing import Array
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._jax.functions import captured_by, replaced, with_functions
from attention_xp.distributed._jax.halo import halo_attention, halo_of
from attention_xp.distributed._jax.ranks import (
    How,
    Ranks,
    dynamic_cut,
    finished,
    partial_result,
    spread,
)
from attention_xp.distributed._layouts import Layout, Stretch
from attention_xp.masks import Mask

__all__ = ["attended", "ring_attention"]

_State = tuple[Array, ...]
_Visit = Callable[[Any, _State, Any, Any], tuple[Any, Any]]


def ring_attention(
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
    """Attend with the rows of each device to the keys of all, which go round; see the function of the package."""
    how = How(group, layout, return_lse, timeout)
    ranks = Ranks.of(query, key, mask, options, how)
    return attended(ranks, query, key, value, mask, dropout_rate, options, how)


def attended(
    ranks: Ranks,
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    dropout_rate: Any,
    options: dict[str, Any],
    how: How,
) -> Any:
    """Return the result of a ring, which is that of a call or of some of its devices."""
    call = ranks.call(mask, dropout_rate, options)
    halo = halo_of(ranks, call)
    if halo is not None:
        output, lse = halo_attention(ranks, halo, query, key, value, mask, dropout_rate, options)
    else:
        output, lse = _Ring(ranks, dropout_rate, call, query).attend(query, key, value)
    return finished(output, lse, ranks.rows(), options, query.dtype, how)


class _Ring:
    """A ring of one call: loops over the devices whose keys arrive, and over the stretches that are held by each.

    What is differentiated is a function of all arrays of the call, in a dict by the name of the argument.
    """

    def __init__(self, ranks: Ranks, dropout_rate: Any, call: Call, query: Array) -> None:
        self.ranks, self.dropout_rate = ranks, dropout_rate
        given = {"mask": call.mask, **call.options}
        self.captured = captured_by(given, query)
        frozen = {name: freeze(thing) for name, thing in given.items()}
        self.templates = {name: template for name, (template, _) in frozen.items()}
        self.arrays = {name: [jnp.asarray(x) for x in arrays] for name, (_, arrays) in frozen.items()}

    def attend(self, query: Array, key: Array, value: Array) -> Any:
        """Return output and log-sum-exp of the rows of this device, in the dtype of the computation."""
        operands = {"query": query, "key": key, "value": value, **self.arrays}
        attend = jax.custom_vjp(self._attend)
        attend.defvjp(self._forward, self._backward, symbolic_zeros=True)
        return attend({**spread(operands, self.ranks), "captured": self.captured})

    def _call(self, operands: dict[str, Any]) -> Call:
        given = {name: thaw(template, operands[name]) for name, template in self.templates.items()}
        if self.captured:
            new = dict(zip(map(id, self.captured), operands["captured"], strict=True))
            given = with_functions(given, lambda function, _: replaced(function, new))
        return self.ranks.call(given.pop("mask"), self.dropout_rate, given)

    def _attend(self, operands: dict[str, Any]) -> Any:
        query, key, value = (operands[name] for name in ("query", "key", "value"))
        call = self._call(operands)

        def visit(source: Any, sent: _State, _: Any, state: Any) -> tuple[Any, Any]:
            def block(rows: Rows, keys: Rows, state: Any) -> Any:
                mask, options = call.block(rows, keys.whole, with_sinks=False)
                key, value = (dynamic_cut(x, keys.shard, -2) for x in sent)
                found = partial_result(dynamic_cut(query, rows.shard, -2), key, value, mask, options)
                before = dynamic_cut(state[0], rows.shard, -2), dynamic_cut(state[1], rows.shard, -1)
                merged = merge_attention(*zip(before, found, strict=True))
                return tuple(
                    _written(x, part, [(rows.shard, a)]) for x, part, a in zip(state, merged, (-2, -1), strict=True)
                )

            return (), self._each_block(call, source, block, state)

        output, lse = jax.eval_shape(lambda q, k, v: partial_result(q, k, v, None, {}), query, key, value)
        nothing = jnp.zeros(output.shape, output.dtype), jnp.full(lse.shape, -jnp.inf, lse.dtype)
        return self._round(visit, (key, value), (), spread_like(nothing, operands))[1]

    def _forward(self, primals: dict[str, Any]) -> tuple[Any, Any]:
        if any(primal.perturbed for primal in primals["captured"]):
            raise ValueError(
                "ring_attention has no gradients by arrays that functions capture: expected jax.lax.stop_gradient of what "
                "score_mod or a mask closes over, or gathered_attention or ulysses_attention, which have these gradients"
            )
        operands = jax.tree.map(lambda primal: primal.value, primals)
        output, lse = self._attend(operands)
        return (output, lse), (operands, output, lse)

    def _backward(self, kept: Any, gradients: tuple[Array, Array]) -> tuple[Any]:
        operands, *of_rows = kept
        gradients = spread_like(tuple(map(_instantiated, gradients)), of_rows)
        call, lse = self._call(operands), of_rows[1]
        wide = {name: operands[name].astype(lse.dtype) for name in ("query", "key", "value")}
        of_rows += gradients

        def visit(source: Any, sent: _State, collected: Any, own: Any) -> tuple[Any, Any]:
            def block(rows: Rows, keys: Rows, totals: Any) -> Any:
                mask, options = call.block(rows, keys.whole, with_sinks=False)
                key, value = (dynamic_cut(x, keys.shard, -2).astype(lse.dtype) for x in sent)
                row_wise = (dynamic_cut(x, rows.shard, a) for x, a in zip(of_rows, (-2, -1, -2, -1), strict=True))
                output, log_sum, grad_output, grad_lse = row_wise
                found = attention_gradients(
                    *(dynamic_cut(wide["query"], rows.shard, -2), key, value, output, log_sum, grad_output, mask),
                    **options,
                    grad_lse=grad_lse,
                )
                collected, own = totals
                collected = tuple(
                    _added(x, part, [(keys.shard, -2)])
                    for x, part in zip(collected, (found.key, found.value), strict=True)
                )
                own = {name: self._total(call, name, own[name], getattr(found, name), rows, keys.whole) for name in own}
                return collected, own

            return self._each_block(call, source, block, (collected, own))  # type: ignore[no-any-return]

        own = {"query": jnp.zeros_like(wide["query"])}
        for name in ("mask", "bias"):
            moving = [x for x in operands.get(name, ()) if jnp.issubdtype(x.dtype, jnp.floating)]
            if moving and not isinstance(call.mask if name == "mask" else None, Mask):
                own[name] = [jnp.zeros(x.shape, lse.dtype) for x in moving]
        own, zeros = spread_like((own, tuple(jnp.zeros_like(wide[name]) for name in ("key", "value"))), operands)
        of_keys, own = self._round(visit, (operands["key"], operands["value"]), zeros, own)
        own |= {"key": of_keys[0], "value": of_keys[1]}
        if operands.get("scale"):
            (scale,) = operands["scale"]
            own["scale"] = [jnp.sum(wide["query"] * own["query"]) / scale.astype(lse.dtype)]
        return (self._like(operands, own),)

    def _total(self, call: Call, name: str, total: Any, part: Any, rows: Rows, keys: Stretch) -> Any:
        """Add what a block contributes to the gradient of an argument of the rows."""
        if name == "query":
            return _added(total, part, [(rows.shard, -2)])
        if isinstance(part, tuple):  # of a rule, which serves all blocks
            return [x + y for x, y in zip(total, part, strict=True)]
        return [_added(total[0], part, call.places(total[0], rows, keys))]

    def _like(self, operands: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """Return gradients in the dtypes of the arrays; None for those that have none."""
        result: dict[str, Any] = {}
        for name, arrays in operands.items():
            if name in ("query", "key", "value"):
                result[name] = found[name].astype(arrays.dtype)
                continue
            rest = iter(found.get(name, ()))
            result[name] = [
                next(rest).astype(x.dtype) if name in found and jnp.issubdtype(x.dtype, jnp.floating) else None
                for x in arrays
            ]
        return result

    def _round(self, visit: _Visit, sent: _State, collected: Any, state: Any) -> tuple[Any, Any]:
        """Visit the keys of all devices, those of this one first; what is collected for keys comes home with them.

        The next keys are on their way while those that are there are visited.
        """
        ranks = self.ranks
        following = [(rank, (rank + 1) % ranks.n) for rank in range(ranks.n)]
        sending = partial(jax.tree.map, lambda x: lax.ppermute(x, ranks.group, following))

        def step(carry: Any, turn: Array) -> tuple[Any, None]:
            sent, collected, state = carry
            arriving = sending(sent)
            collected, state = visit((ranks.rank - turn) % ranks.n, sent, collected, state)
            return (arriving, sending(collected), state), None

        turns = jnp.arange(ranks.n - 1, dtype=jnp.int32)
        (sent, collected, state), _ = lax.scan(step, (sent, collected, state), turns)
        collected, state = visit((ranks.rank + 1) % ranks.n, sent, collected, state)
        return sending(collected), state

    def _each_block(self, call: Call, source: Any, block: Callable[[Rows, Rows, Any], Any], state: Any) -> Any:
        """Compute the blocks of this device's rows under the keys of another that may have an allowed pair."""
        all_rows, all_keys = self.ranks.rows(), self.ranks.keys(source)

        def visited(rows: Rows, keys: Rows, state: Any) -> Any:
            # JAX differentiates no such condition: it would put sums over all devices into a branch that only some take.
            allowed = call.any_allowed(rows, keys.whole)
            if isinstance(allowed, bool):
                return block(rows, keys, state) if allowed else state
            return lax.cond(jnp.any(allowed), lambda state: block(rows, keys, state), lambda state: state, state)

        if len(all_rows) == 1:
            return visited(all_rows[0], all_keys[0], state)

        def pair(state: Any, i: Array) -> tuple[Any, None]:
            return visited(_chosen(all_rows, i // 2), _chosen(all_keys, i % 2), state), None

        # JAX differentiates no other loop a second time.
        return lax.scan(pair, state, jnp.arange(4, dtype=jnp.int32))[0]


def _instantiated(gradient: Any) -> Array:
    """Return a gradient as an array, where JAX knows that it is zero as well."""
    is_zero = isinstance(gradient, jax.custom_derivatives.SymbolicZero)
    return jnp.zeros(gradient.shape, gradient.dtype) if is_zero else gradient


def _chosen(rows: list[Rows], i: Array) -> Rows:
    """Return one of two stretches, which are of one size, by a number that the program knows."""
    first, second = rows
    whole = jnp.where(i == 0, first.whole.start, second.whole.start)
    return Rows(Stretch(whole, first.whole.size), Stretch(i * first.shard.size, first.shard.size))


def _written(array: Array, part: Array, places: list[tuple[Stretch, int]]) -> Array:
    starts = [jnp.int32(0)] * array.ndim
    for stretch, axis in places:
        starts[axis] = jnp.int32(stretch.start)
    return lax.dynamic_update_slice(array, part, starts)


def _added(total: Array, part: Array, places: list[tuple[Stretch, int]]) -> Array:
    before = total
    for stretch, axis in places:
        before = dynamic_cut(before, stretch, axis)
    return _written(total, before + part.astype(total.dtype), places)
