"""A scan over the sequence in chunks, with a state: the one loop of linear attention."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from attention_xp._backend.libraries import is_jax_namespace
from attention_xp._backend.sharding import spread_like
from attention_xp._engine.plan.plan import bounds
from attention_xp._typing import Array, Namespace

__all__ = ["Rows", "Step", "Stepped", "scan"]

# Names, because Dynamo cannot make such types while it traces the definition of a step.
Rows: TypeAlias = tuple[Any, ...]  # arrays, or None where there is none
Stepped: TypeAlias = tuple[Any, Rows]
Step: TypeAlias = Callable[[Any, Rows, Rows], Stepped]
"""``step(carry, rows, marks) -> (carry, results)``."""


def scan(
    step: Step,
    carry: Any,
    rows: Sequence[Array | None],
    marks: Sequence[Array | None] = (),
    *,
    size: int,
    xp: Namespace,
    reverse: bool = False,
) -> tuple[Any, Rows]:
    """Fold `step` over chunks of `size` rows and join what it returns for each.

    `rows` are arrays (..., S, width), cut along the axis of S; the last chunk may be shorter. `marks` are
    arrays (..., chunks, width) with one row for each chunk. Entries of ``None`` stay ``None``.
    """
    S = next(a.shape[-2] for a in rows if a is not None)
    if is_jax_namespace(xp) and 2 * size <= S:
        return _scan_in_program(step, carry, tuple(rows), tuple(marks), S, size, xp, reverse)
    chunks = bounds(0, S, size)
    results: list[Rows] = []
    for i in reversed(range(len(chunks))) if reverse else range(len(chunks)):
        cut, mark = _cut(rows, *chunks[i]), _cut(marks, i, i + 1)
        carry, result = step(carry, cut, mark)
        results.append(result)
    if reverse:
        results.reverse()
    return carry, tuple(_join(parts, xp) for parts in zip(*results, strict=True))


def _cut(arrays: Sequence[Array | None], start: int, stop: int) -> Rows:
    return tuple(None if a is None else a[..., start : min(stop, a.shape[-2]), :] for a in arrays)


def _join(parts: Sequence[Array | None], xp: Namespace) -> Array | None:
    given = [a for a in parts if a is not None]
    return xp.concat(given, axis=-2) if given else None


def _scan_in_program(
    step: Step, carry: Any, rows: Rows, marks: Rows, S: int, size: int, xp: Namespace, reverse: bool
) -> tuple[Any, Rows]:
    """Loop with `jax.lax.scan` over the whole chunks; the rest is one more step.

    Reverse differentiation keeps the carry of each chunk alone and computes the chunk again.
    """
    jax: Any = sys.modules["jax"]
    chunks = S // size
    stop = chunks * size
    rest = None if stop == S else (_cut(rows, stop, S), _cut(marks, chunks, chunks + 1))
    remembered = jax.checkpoint(lambda carry, given: step(carry, *given), prevent_cse=False)
    whole = (_stack(_cut(rows, 0, stop), chunks, xp), _stack(_cut(marks, 0, chunks), chunks, xp))
    last: Rows | None = None
    if rest is not None and reverse:
        carry, last = step(carry, *rest)
    carry = spread_like(carry, (carry, whole))
    carry, stacked = jax.lax.scan(remembered, carry, whole, reverse=reverse)
    if rest is not None and not reverse:
        carry, last = step(carry, *rest)
    first = tuple(None if a is None else _unstack(a, xp) for a in stacked)
    return carry, first if last is None else tuple(_join(pair, xp) for pair in zip(first, last, strict=True))


def _stack(arrays: Rows, chunks: int, xp: Namespace) -> Rows:
    """(..., S, width) -> (chunks, ..., size, width)."""

    def stack(a: Array) -> Array:
        *lead, S, width = a.shape
        return xp.moveaxis(xp.reshape(a, (*lead, chunks, S // chunks, width)), -3, 0)

    return tuple(None if a is None else stack(a) for a in arrays)


def _unstack(a: Array, xp: Namespace) -> Array:
    """(chunks, ..., size, width) -> (..., S, width)."""
    a = xp.moveaxis(a, 0, -3)
    *lead, chunks, size, width = a.shape
    return xp.reshape(a, (*lead, chunks * size, width))
