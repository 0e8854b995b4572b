"""Packed sequences: one problem for all of them, or one for each."""

import math
from itertools import pairwise
from typing import Any

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device
from attention_xp._engine.kernels.choose import attend
from attention_xp._engine.problem.options import AttentionOptions
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._scores.packing import pack
from attention_xp._typing import Array, Namespace
from attention_xp.biases._packed_rule import SequenceBias
from attention_xp.masks import ArrayMask, Mask
from attention_xp.masks._packed_rule import of_sequence

__all__ = ["attend_one_by_one", "attend_together"]


def attend_together(
    xp: Namespace,
    packed: tuple[Array, ...],
    cu_seqlens: tuple[Array, Array | None],
    mask: Mask | None,
    dropout_rate: float,
    options: AttentionOptions,
    own: dict[str, Any],
    wanted: Wanted,
) -> Attended:
    """Attend within all sequences in one call, whose bounds only the device knows; they have `own` positions and numbers."""
    query, key, value = packed
    (cu_q, cu_k), count = cu_seqlens, cu_seqlens[0].shape[0] - 1
    positions = own.get("key_positions")
    places = pack(
        xp,
        query.shape[2],
        key.shape[2],
        (cu_q, cu_q if cu_k is None else cu_k),
        (own.get("query_offset", 0), own.get("key_offset", 0)),
        positions,
        own.get("item_ids"),
        same=cu_k is None and own.keys() <= {"item_ids"},
    )
    rule = None if mask is None else of_sequence(mask, count)
    if positions is not None:
        is_filled = ArrayMask(xp.expand_dims(positions >= 0, axis=0))
        rule = is_filled if rule is None else rule & is_filled
    bias: Any = options.get("bias")
    options = {**options, "query_offset": 0, "bias": None if bias is None else SequenceBias(bias, count, None)}
    found = attend(Problem.of(query, key, value, rule, dropout_rate, options, packing=places), wanted)
    if found.lse is None:
        return found
    # Behind the last sequence it is minus infinity, sinks or not.
    return found._replace(lse=xp.where(places.q_item < count, found.lse, -math.inf))


def attend_one_by_one(
    packed: tuple[Array, ...],
    bounds: list[Any],
    mask: Mask | None,
    dropout_rate: float,
    options: AttentionOptions,
    own: dict[str, Any],
    wanted: Wanted,
) -> Attended:
    """Attend within one sequence after the other."""
    (query, key, value), found, count = packed, list[Attended](), len(bounds[0]) - 1
    bias: Any = options.get("bias")
    sequences = list(zip(pairwise(bounds[0]), pairwise(bounds[1]), strict=True))
    sequences = sequences or [((0, 0), (0, 0))]  # a call with none is checked like any other
    for i, ((row, stop), (column, end)) in enumerate(sequences):
        here: Any = {**options, "item_ids": i}
        for name, x in own.items():
            here[name] = x if isinstance(x, int) else x[column:end] if name == "key_positions" else x[i]
        if bias is not None:
            here["bias"] = SequenceBias(bias, count, i)
        problem = Problem.of(
            query[:, :, row:stop, :],
            key[:, :, column:end, :],
            value[:, :, column:end, :],
            None if mask is None else of_sequence(mask, count, i),
            dropout_rate,
            here,
        )
        found.append(attend(problem, wanted))
    return _side_by_side(problem, found, query.shape[2] - bounds[0][-1])


def _side_by_side(problem: Problem, found: list[Attended], rest: int) -> Attended:
    """Return what was found for all sequences, and that rows behind them attend nothing."""
    xp, query = problem.xp, problem.query
    outputs, lses = [x.output for x in found], [x.lse for x in found]
    shape = (*problem.lead, rest)
    outputs.append(xp.zeros((*shape, problem.value.shape[-1]), dtype=query.dtype, device=device(query)))
    output = as_dtype(xp, xp.concat(outputs, axis=2), query.dtype)  # NumPy joins in the machine's byte order
    if lses[0] is None:
        return Attended(output, None, None)
    lses.append(xp.full(shape, -math.inf, dtype=lses[0].dtype, device=device(query)))
    return Attended(output, None, xp.concat(lses, axis=2))
