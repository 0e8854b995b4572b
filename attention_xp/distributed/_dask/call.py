"""A call on arrays of Dask: checked, aligned with the chunks of the scores, and planned block by block."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.task_spec import TaskRef

from attention_xp._backend.libraries import is_numpy
from attention_xp._checks.numbers import check_count
from attention_xp._engine.kernels.choose import choose
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._scores.alignment import aligned_addend, aligned_mask
from attention_xp.biases import Bias
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._dask.graph import Layer, of_results, of_rule, summed
from attention_xp.distributed._dask.grid import Aligned, Grid, Index, as_dask, stand_in
from attention_xp.distributed._dask.tasks import (
    Whole,
    attended,
    gradients,
    key_totals,
    measured,
    merged,
    merged_statistics,
    with_sinks,
)
from attention_xp.distributed._layouts import Stretch

__all__ = ["DaskCall"]

_PARTS = ("query", "key", "value", "mask", "bias", "sinks")  # as attention_gradients returns them
_PLACES = ("query_offset", "key_offset", "key_positions")


class DaskCall(NamedTuple):
    """A call that was checked."""

    problem: Problem  # of arrays that stand in for those of the call
    whole: Whole
    grid: Grid
    plan: list[list[int]]  # the chunks of keys that each chunk of rows meets
    given: tuple[da.Array, da.Array, da.Array]
    inputs: tuple[Aligned, Aligned, Aligned]  # query, key and value
    arrays: dict[str, da.Array]  # options
    options: dict[str, Aligned]  # these in chunks of the grid
    split_every: int
    token: str

    @classmethod
    def of(
        cls,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        dropout_rate: Any,
        options: Mapping[str, Any],
        split_every: Any,
    ) -> "DaskCall":
        """Check a call before anything is computed."""
        split_every = check_count("split_every", split_every, low=2)
        given = tuple(as_dask(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
        named = {"mask": mask, **options}
        arrays = {name: as_dask(name, x) for name, x in named.items() if _is_array(x)}
        problem = _checked(given, named, arrays, dropout_rate)
        plain = {name: x for name, x in named.items() if name not in arrays}
        Sq, Sk = given[0].shape[-2], given[1].shape[-2]
        whole = Whole(
            mask=plain.pop("mask", None),
            dropout_rate=dropout_rate,
            options=plain,
            names=tuple(arrays),
            batch=problem.batch,
            heads=problem.heads,
            Sq=Sq,
            Sk=Sk,
            dtype=problem.dtype,
        )
        grid = Grid.of(problem, problem.group, *given)
        call = Call(mask, dropout_rate, _known(options), Sq=Sq, Sk=Sk)
        inputs = grid.rows(given[0]), grid.of_keys(given[1]), grid.of_keys(given[2])
        aligned = {name: grid.option(name, array) for name, array in arrays.items()}
        token = tokenize(whole, split_every, *given, arrays)
        return cls(problem, whole, grid, _plan(call, grid), given, inputs, arrays, aligned, split_every, token)

    @property
    def _sources(self) -> list[da.Array]:
        return [x.array for x in (*self.inputs, *self.options.values())]

    def attended(self) -> tuple[da.Array, da.Array]:
        """Return output and log-sum-exp."""
        layer = Layer(f"attention-block-{self.token}", self._sources)
        blocks = layer.add_blocks(self.grid, self.plan, self.whole, attended, [*self.inputs, *self.options.values()])
        rows = self._of_rows(layer, f"attention-merge-{self.token}", blocks, merged)
        query, value = self.given[0], self.given[2]
        chunks = self.grid.chunks[:-1]
        lse = of_results(layer, f"attention-lse-{self.token}", rows, 1, chunks, query, self.problem.dtype)
        outputs = {(*index, 0): ref for index, ref in rows.items()}
        chunks = (*chunks, (value.shape[-1],))
        return of_results(layer, f"attention-{self.token}", outputs, 0, chunks, query, query.dtype), lse

    def _of_rows(
        self, layer: Layer, name: str, blocks: dict[Index, TaskRef], function: Callable[..., Any]
    ) -> dict[Index, TaskRef]:
        """Merge the blocks of each chunk of rows."""
        return {
            (*lead, i): layer.add_tree(
                name, (*lead, i), [blocks[*lead, i, j] for j in columns], function, self.split_every
            )
            for lead, (i, columns) in product(self.grid.lead, enumerate(self.plan))
        }

    def statistics(self) -> list[da.Array]:
        """Return log-sum-exp, largest score, entropy, and the sum of the weights of each key."""
        token, options = self.token, list(self.options.values())
        layer = Layer(f"attention-block-statistics-{token}", self._sources)
        blocks = layer.add_blocks(self.grid, self.plan, self.whole, measured, [*self.inputs[:2], *options])
        rows = self._of_rows(layer, f"attention-merge-statistics-{token}", blocks, merged_statistics)
        if "sinks" in self.options:
            sinks = self.options["sinks"]
            name = f"attention-sinks-{token}"
            rows = {index: layer.add((name, *index), with_sinks, ref, sinks.ref(index)) for index, ref in rows.items()}
        query, dtype, chunks = self.given[0], self.problem.dtype, self.grid.chunks
        found = [
            of_results(layer, f"attention-statistics-{name}-{token}", rows, n, chunks[:-1], query, dtype)
            for n, name in enumerate(("lse", "max-score", "entropy"))
        ]
        lse = self.grid.rows(found[0])
        layer = Layer(f"attention-totals-{token}", [*self._sources, lse.array])
        blocks = layer.add_blocks(self.grid, self.plan, self.whole, key_totals, [*self.inputs[:2], lse, *options])
        shape = (*self.problem.lead, self.whole.Sk)
        like = Aligned(
            da.zeros_like(query, shape=shape, dtype=dtype, chunks=(*chunks[:-2], chunks[-1])),
            self.grid.of_heads_and_keys,
        )
        return [*found, summed(layer, f"attention-key-totals-{token}", blocks, 0, like, self.split_every)]

    def gradients(self, output: da.Array, lse: da.Array, grad_output: da.Array) -> list[Any]:
        """Return those of query, key, value, mask, bias and sinks."""
        of_rows = [self.grid.rows(x) for x in (output, lse, grad_output)]
        token = tokenize(self.token, grad_output)
        layer = Layer(f"attention-gradient-{token}", [*self._sources, *(x.array for x in of_rows)])
        blocks = layer.add_blocks(
            self.grid, self.plan, self.whole, gradients, [*self.inputs, *of_rows, *self.options.values()]
        )
        likes = dict(enumerate(self.inputs)) | {
            _PARTS.index(name): like
            for name, like in self.options.items()
            if name in _PARTS and like.array.dtype != bool
        }
        found: list[Any] = [None] * len(_PARTS)
        for n, like in likes.items():
            name = f"attention-gradient-{_PARTS[n]}-{token}"
            found[n] = summed(layer, name, blocks, n, like, self.split_every)
            given = self.given[n] if n < len(self.given) else self.arrays[_PARTS[n]]
            if _PARTS[n] in ("key", "value"):
                found[n] = self.grid.of_given_heads(found[n], given)
            found[n] = found[n].reshape(given.shape).rechunk(given.chunks)
        bias = self.whole.options.get("bias")
        if isinstance(bias, Bias):
            found[4] = of_rule(layer, f"attention-gradient-bias-{token}", blocks, 4, bias.arrays, self.split_every)
        return found


def _checked(
    given: Sequence[da.Array], named: Mapping[str, Any], arrays: Mapping[str, da.Array], dropout_rate: Any
) -> Problem:
    """Refuse what cannot be computed; no values are read, of which there may be too many in masks and biases."""
    stands_in = {name: stand_in(array, given[0]) for name, array in arrays.items()}
    pairs = {name: stands_in.pop(name) for name in ("mask", "bias") if name in stands_in}
    options: Any = dict(named) | stands_in | dict.fromkeys(pairs)
    query, key, value = map(stand_in, given)
    problem = Problem.of(query, key, value, options.pop("mask"), dropout_rate, options)
    problem = replace(problem, Sk=problem.given_keys)  # lengths are not read either
    if "mask" in pairs:
        aligned_mask(problem, pairs["mask"])
    if "bias" in pairs:
        aligned_addend(problem, "bias", pairs["bias"])
    if problem.impl == "fused":
        choose(problem, Wanted(lse=True))
    return problem


def _is_array(given: Any) -> bool:
    """Whether an option is an array, and neither a rule nor a number of NumPy."""
    return hasattr(given, "dtype") and not isinstance(given, Bias | np.generic)


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as far as their values are known before anything is computed; for places, that they are given."""
    known = {}
    for name, given in options.items():
        if not _is_array(given):
            known[name] = given
        elif is_numpy(given):
            known[name] = given if given.ndim else given.item()
        elif name in _PLACES:
            known[name] = np.zeros(1, np.int32)
    return known


def _plan(call: Call, grid: Grid) -> list[list[int]]:
    """Return the chunks of keys that each chunk of rows may attend; the first chunk where it may attend none.

    Chunks of keys are arrays, so that `reach` answers, for all of them at once, and no mask is evaluated.
    """
    first: Any = np.asarray(grid.starts[-1])
    size: Any = np.asarray(grid.chunks[-1])
    plan = []
    for rows in map(Stretch, grid.starts[-2], grid.chunks[-2]):
        allowed = call.any_allowed(Rows(rows, rows), Stretch(first, size))
        plan.append(np.flatnonzero(np.broadcast_to(allowed, first.shape)).tolist() or [0])
    return plan
