"""What the tasks of a graph compute: on the blocks of the arrays, with the library that these belong to."""

import math
import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

from attention_xp._attention import flash_attention
from attention_xp._backend.dtypes import as_dtype, is_floating
from attention_xp._backend.libraries import array_namespace, device
from attention_xp._gradients import attention_gradients
from attention_xp._merge import merge_attention, shares_of
from attention_xp._statistics import attention_statistics
from attention_xp._typing import Array, DType
from attention_xp.biases import Bias
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._layouts import Stretch
from attention_xp.distributed._rules_of_whole import Place, constant, rule_of_whole

__all__ = [
    "Block",
    "Whole",
    "attended",
    "cast",
    "gradients",
    "key_totals",
    "measured",
    "merged",
    "merged_statistics",
    "one_of",
    "sums",
    "with_sinks",
    "zeros",
]


class Whole(NamedTuple):
    """What all tasks of a call share."""

    mask: Any  # a Mask or None; an array comes in pieces
    dropout_rate: float
    options: dict[str, Any]  # those that are no arrays
    names: tuple[str, ...]  # those of the options of which a task gets a chunk, in this order
    batch: tuple[int, ...]
    heads: int | None
    Sq: int
    Sk: int
    dtype: DType  # of the computation


class Block(NamedTuple):
    """A rectangle of the scores (..., H, Sq, Sk) of some batch items and heads."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    with_sinks: bool


def attended(whole: Whole, block: Block, query: Array, key: Array, value: Array, *arrays: Any) -> tuple[Array, Array]:
    """Return output and log-sum-exp of some rows for some keys; `arrays` are chunks of options."""
    mask, options = _options(whole, block, query, arrays)
    return flash_attention(query, key, value, mask, **options, return_lse=True, output_dtype=whole.dtype)  # type: ignore[no-any-return]


def merged(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return output and log-sum-exp for all keys of some parts."""
    outputs, lses = zip(*parts, strict=True)
    return merge_attention(outputs, lses)


def one_of(results: Sequence[Any], n: int, dtype: DType) -> Array:
    """Return one of several results, in a dtype."""
    return cast(results[n], dtype)


def cast(array: Array, dtype: DType) -> Array:
    """Return an array in a dtype."""
    return as_dtype(array_namespace(array), array, dtype)


def gradients(
    whole: Whole,
    block: Block,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array,
    grad_output: Array,
    *arrays: Any,
) -> tuple[Any, ...]:
    """Return what a block adds to the gradients of query, key, value, mask, bias and sinks, in the dtype of the computation."""
    q, k, v, out, logs, upstream = (cast(x, whole.dtype) for x in (query, key, value, output, lse, grad_output))
    xp = array_namespace(query)
    arrays = tuple(cast(x, whole.dtype) if is_floating(xp, x.dtype) else x for x in arrays)
    mask, options = _options(whole, block, query, arrays)
    return tuple(attention_gradients(q, k, v, out, logs, upstream, mask, **options))


def measured(whole: Whole, block: Block, query: Array, key: Array, *arrays: Any) -> tuple[Array, Array, Array]:
    """Return log-sum-exp, largest score and entropy of some rows for some keys, without sinks."""
    mask, options = _options(whole, block._replace(with_sinks=False), query, arrays)
    found = attention_statistics(query, key, mask, **_without_dropout(options))
    return found.lse, found.max_score, found.entropy


def merged_statistics(parts: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """Return the same of some rows for all keys of some parts: with shares p of their sums, sum(p * (entropy - log p))."""
    xp = array_namespace(parts[0][0])
    logs, largest, entropies = (xp.stack(arrays, axis=0) for arrays in zip(*parts, strict=True))
    shares, lse = shares_of(logs)
    return lse, xp.max(largest, axis=0), xp.sum(shares * (entropies + _surprise(shares)), axis=0)


def with_sinks(found: tuple[Array, Array, Array], sinks: Array) -> tuple[Array, Array, Array]:
    """Return the same where sinks, (H,) or (), take part in the sums and are no keys."""
    lse, largest, entropy = found
    xp = array_namespace(lse)
    shares, whole = shares_of(xp.stack([lse, cast(sinks[..., None], lse.dtype) + xp.zeros_like(lse)], axis=0))
    return whole, largest, shares[0] * (entropy + _surprise(shares[0]))


def _surprise(shares: Array) -> Array:
    """Return minus the logarithm, and 0 where there is no share."""
    xp = array_namespace(shares)
    return -xp.log(xp.where(shares > 0.0, shares, 1.0))


def key_totals(whole: Whole, block: Block, query: Array, key: Array, lse: Array, *arrays: Any) -> tuple[Array]:
    """Return the sums of the weights that some keys receive from some rows.

    It is the gradient of a value of width 1, where that of the output is 1, for each head.
    """
    mask, options = _options(whole, block._replace(with_sinks=False), query, arrays)
    score_mod = options.pop("score_mod", None)
    if score_mod is not None:
        options["score_mod"] = score_mod if isinstance(score_mod, tuple) else (score_mod, _no_slope)
    if isinstance(options.get("bias"), Bias):
        options["bias"] = constant(options["bias"])
    xp = array_namespace(query)
    q, k, logs = (cast(x, whole.dtype) for x in (query, key, lse))
    if whole.heads is not None:
        k = xp.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)
    ones = xp.ones_like(logs)[..., None]
    value = xp.ones((*logs.shape[:-1], k.shape[-2], 1), dtype=k.dtype, device=device(k))
    found = attention_gradients(q, k, value, ones, logs, ones, mask, **_without_dropout(options))
    return (found.value[..., 0],)


def _without_dropout(options: dict[str, Any]) -> Any:
    return {name: given for name, given in options.items() if name not in ("dropout_rate", "rng")}


def _no_slope(score: Array, *_: Array) -> Array:
    """Return zeros, for a derivative that only gradients of scores would need."""
    return array_namespace(score).zeros_like(score)


def sums(parts: Sequence[Any], n: int | None = None) -> Any:
    """Return the sum of arrays, or of each of several in tuples; with `n`, of those that stand there in each part.

    Parts that are None, such as the gradient of sinks in a block without, count for nothing.
    """
    parts = [part for part in (parts if n is None else (part[n] for part in parts)) if part is not None]
    if parts and isinstance(parts[0], tuple):
        return tuple(map(sums, zip(*parts, strict=True)))
    return reduce(operator.add, parts) if parts else None


def zeros(array: Array, dtype: DType) -> Array:
    """Return zeros in the shape of an array."""
    return array_namespace(array).zeros_like(array, dtype=dtype)


def _options(whole: Whole, block: Block, query: Array, arrays: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """Return the mask and the options of a block."""
    given = whole.options | dict(zip(whole.names, arrays, strict=True))
    mask = given.pop("mask", whole.mask)
    *lead, row, column = block.starts
    *sizes, rows, columns = block.sizes
    if block.sizes[:-2] != (*whole.batch, *(() if whole.heads is None else (whole.heads,))):
        given = _ids(whole, lead, sizes, query) | given
    call = Call(mask, whole.dropout_rate, given, Sq=whole.Sq, Sk=whole.Sk, cut=_as_cut)
    own = Stretch(row, rows)
    mask, options = call.block(Rows(own, own), Stretch(column, columns), with_sinks=block.with_sinks)
    place = Place(block.starts, block.sizes, whole.batch, whole.heads)
    if "bias" in options:
        options["bias"] = rule_of_whole(options["bias"], place)
    return rule_of_whole(mask, place), options


def _as_cut(array: Array, stretch: Stretch, axis: int) -> Array:  # noqa: ARG001
    return array


def _ids(whole: Whole, starts: Sequence[int], sizes: Sequence[int], query: Array) -> dict[str, Array]:
    """Return the numbers of some batch items and heads in the whole."""
    xp, place, n = array_namespace(query), device(query), len(whole.batch)
    items = xp.reshape(xp.arange(math.prod(whole.batch), dtype=xp.int32, device=place), whole.batch)
    ids = {
        "item_ids": items[tuple(slice(i, i + size) for i, size in zip(starts[:n], sizes[:n], strict=True))],
    }
    if whole.heads is not None:
        ids["head_ids"] = xp.arange(starts[n], starts[n] + sizes[n], dtype=xp.int32, device=place)
    return ids
