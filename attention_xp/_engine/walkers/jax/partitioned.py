"""The loops of a call as an operation that devices share out: each computes those of its batch items, heads and rows."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from attention_xp._backend.partitions import Axes, Flat, Shared, Sharing
from attention_xp._backend.shared_out import may_be_shared_out, shared_out
from attention_xp._engine.walkers.jax.host import Walk, things, walked
from attention_xp._engine.walkers.jax.shares import part_of_device, shares_of
from attention_xp._typing import Array

__all__ = ["partitioned"]


def partitioned(
    walk: Walk,
    template: Any,
    arrays: Sequence[Array],
    results: Callable[[Sequence[Axes]], Sequence[Axes]],
) -> Any:
    """Return the results of a walk over what template and arrays make: a problem, or a problem and what is known of it.

    `results` names the axes of the arrays in the result, given the names of those of `arrays`.
    """
    shares = shares_of(template, arrays) if may_be_shared_out(arrays) else None
    if shares is None:
        return walked(walk, template, arrays)

    def whole(*operands: Array) -> Any:
        return walk.by_loops(*things(template, operands[: len(arrays)]))

    def part(shared: Shared) -> Flat:
        def compute(*operands: Array) -> Any:
            numbers = dict(zip(shares.sizes, operands[len(arrays) :], strict=True))
            problem, *known = things(template, operands[: len(arrays)])
            return walk.by_loops(part_of_device(problem, numbers, frozenset(shared)), *known)

        return compute

    numbers = [jnp.arange(size, dtype=jnp.int32) for size in shares.sizes.values()]
    sharing = Sharing((*shares.arrays, *shares.numbers), tuple(results(shares.arrays)), shares.units)
    return shared_out(whole, part, [*map(jnp.asarray, arrays), *numbers], sharing)
