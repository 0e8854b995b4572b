"""Which axes of the arrays of a problem devices may share out, and the problem that a device is left with.

Axes are named: ``b0``, ``b1``, ... those of the batch, ``h`` the heads and ``q`` the rows. Key/value heads go by ``h`` as well, and
query heads that share one by ``g``: a device has the key/value heads of its query heads.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from attention_xp._backend.partitions import Axes
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.sizes import is_open
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.jax.captured import CapturedBias, CapturedRule
from attention_xp._scores.attributes import leaves_of, parts_of_kind, with_parts
from attention_xp._scores.frozen import thaw
from attention_xp._scores.rule import Rule
from attention_xp._typing import Array
from attention_xp.masks import Mask
from attention_xp.masks._call_rules import RowMask

__all__ = ["Shares", "part_of_device", "shares_of"]


class Shares(NamedTuple):
    """How the arrays of a problem, and of what is known of it, may be shared out."""

    arrays: tuple[Axes, ...]
    sizes: Mapping[str, int]  # of all axes with a name
    units: Mapping[str, tuple[int, ...]]  # as in `Sharing`
    numbers: tuple[Axes, ...]  # of the numbers along all axes with a name


@dataclasses.dataclass(frozen=True)
class _Slot:
    """The place of an array, with what rules ask about one."""

    index: int
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


_Names = tuple[str | None, ...]  # of the axes of an array


class _UnsharedError(Exception):
    """There is something in a problem of which a part of the whole cannot be told."""


def shares_of(template: Any, arrays: Sequence[Array]) -> Shares | None:
    """Return how arrays may be shared out, ``None`` where they may not."""
    slots = [_Slot(i, tuple(a.shape)) for i, a in enumerate(arrays)]
    if any(is_open(*slot.shape) for slot in slots):
        return None
    thing = thaw(template, slots)
    problem, known = thing if isinstance(thing, tuple) else (thing, ())
    named = _Named(problem, slots)
    try:
        named.name_all(known)
    except _UnsharedError:
        return None
    arrays = tuple(named.parts(names, slot.shape) for names, slot in zip(named.names, slots, strict=True))
    numbers = tuple(named.parts((name,), (size,)) for name, size in named.sizes.items())
    return Shares(arrays, named.sizes, named.units(), numbers)


class _Named:
    """The names of the axes of all arrays of a problem, in which slots stand for arrays."""

    def __init__(self, problem: Problem, slots: Sequence[_Slot]) -> None:
        self.problem = problem
        self.names: list[_Names] = [(None,) * slot.ndim for slot in slots]
        self.batch = tuple(f"b{i}" for i in range(len(problem.batch)))
        self.heads = () if problem.heads is None else ("h",)
        self.sizes = dict(zip((*self.batch, *self.heads), problem.lead, strict=True)) | {"q": problem.query.shape[-2]}
        self.is_counted = False  # whether functions count rows, batch items and heads from those of the whole

    def name_all(self, known: Sequence[Any]) -> None:
        """Name the axes of all arrays of the problem, and of a forward pass and its gradients."""
        problem, lead = self.problem, (*self.batch, *self.heads)
        output, lse, gradient, grad_lse = known or (None,) * 4
        of_scores = problem.key_positions, problem.item_ids, problem.head_ids, problem.sinks, *problem.addends
        for slot in (problem.query, output, gradient, *of_scores):
            self._name(slot, (*lead, "q", None))
        for slot in (lse, grad_lse):
            self._name(slot, (*lead, "q"))
        for slot in (problem.query_offset, problem.query_lengths):
            self._name(slot, self.batch)
        for slot in (problem.key, problem.value):
            self._name(slot, (*lead, None, None), heads=problem.key.shape[-3] if lead else 0)
        for rule in (*problem.addends, *problem.rules):
            self._name_rule(rule)

    @property
    def is_grouped(self) -> bool:
        """Whether there are several key/value heads, each for several query heads."""
        problem = self.problem
        return problem.heads is not None and problem.group > 1 and problem.key.shape[-3] > 1

    def parts(self, names: _Names, shape: tuple[int, ...]) -> Axes:
        """Return the names with those of what axes are made of: query heads are key/value heads, h, times a group, g."""
        of_query = ("h", "g") if self.is_grouped else ("h",)
        return tuple(
            () if name is None else of_query if name == "h" and size == self.sizes["h"] else (name,)
            for name, size in zip(names, shape, strict=True)
        )

    def units(self) -> dict[str, tuple[int, ...]]:
        """Return for each name the sizes that the number of devices has to divide."""
        problem = self.problem
        units: dict[str, tuple[int, ...]] = {name: (size,) for name, size in self.sizes.items()}
        if self.is_grouped:
            units |= {"h": (problem.key.shape[-3],), "g": (problem.group,)}
        if self.is_counted or problem.score_mod is not None:  # traced for tiles of so many batch items and heads
            for name, size, some in zip(
                (*self.batch, *self.heads), problem.lead, problem.stack or problem.lead, strict=True
            ):
                units[name] = (*units[name], size // some)
                if name == "h" and some > 1:
                    units.pop("g", None)
        if self.is_counted or problem.score_mod is not None or problem.packing is not None:
            del units["q"]
        return units

    def _name(self, slot: Any, axes: _Names, *, heads: int = 0) -> None:
        """Name the axes of a slot, lined up from the right; those of length 1 are for all devices."""
        if not isinstance(slot, _Slot):
            return
        axes = ((None,) * slot.ndim + axes)[len(axes) :]
        names = tuple(None if size == 1 else name for name, size in zip(axes, slot.shape, strict=True))
        for name, size in zip(names, slot.shape, strict=True):
            if name is not None and size != (heads if heads and name == "h" else self.sizes[name]):
                raise _UnsharedError
        self.names[slot.index] = names

    def _name_rule(self, rule: Any) -> None:
        """Name the axes of the arrays of a bias or mask, and of those that it is made of."""
        if not isinstance(rule, Rule):
            return
        parts = parts_of_kind(rule, Rule)
        if isinstance(rule, CapturedBias | CapturedRule):
            self._count_from_whole()
        elif not rule._is_ours or not (rule._axes or parts or _is_alike(rule)):
            raise _UnsharedError
        for part in parts:
            self._name_rule(part)
        for name, slot in leaves_of(rule):
            letters = rule._axes.get(name.partition("[")[0])
            if letters is not None:
                self._name(slot, tuple(self._spelt_out(letters)))

    def _count_from_whole(self) -> None:
        """Note that a function is called with places in the whole, and with the offset of the whole."""
        offset = self.problem.query_offset
        if self.problem.packing is not None or (isinstance(offset, _Slot) and math.prod(offset.shape) != 1):
            raise _UnsharedError
        self.is_counted = True

    def _spelt_out(self, letters: str) -> Iterator[str | None]:
        for letter in letters:
            if letter == "b":
                yield from self.batch
            elif letter == "h":
                yield "h" if self.heads else None
            else:
                yield None if letter == "." else letter


def _is_alike(rule: Rule) -> bool:
    """Whether a rule is a mask that says the same of all batch items and heads."""
    return isinstance(rule, Mask) and math.prod(rule.lead) == 1


def part_of_device(problem: Problem, numbers: Mapping[str, Array], shared: frozenset[str]) -> Problem:
    """Return a problem whose arrays are those of a device, given the numbers in the whole of its items, heads and rows."""
    batch, heads = tuple(problem.query.shape[: len(problem.batch)]), problem.heads
    if heads is not None:
        heads = problem.query.shape[-3]
    changes: dict[str, Any] = {"batch": batch, "heads": heads}
    if heads is not None:
        changes["group"] = heads // problem.key.shape[-3]
    items = [f"b{i}" for i in range(len(batch))]
    if problem.item_ids is None and not shared.isdisjoint(items):
        changes["item_ids"] = _numbers_of_items(problem, [numbers[name] for name in items])
    if problem.head_ids is None and "h" in shared:
        changes["head_ids"] = numbers["h"][:, None, None]
    origin = (*(numbers[name][0] for name in (*items, *(() if heads is None else ("h",)))), 0, 0)
    row = numbers["q"][0] if "q" in shared else None
    if row is not None:
        changes["query_offset"] = row if problem.query_offset is None else row + problem.query_offset
        changes["query_lengths"] = None if problem.query_lengths is None else problem.query_lengths - row
    changes["rules"], changes["addends"] = (
        tuple(_placed(rule, origin, row) for rule in rules) for rules in (problem.rules, problem.addends)
    )
    return dataclasses.replace(problem, **changes)


def _numbers_of_items(problem: Problem, numbers: Sequence[Array]) -> Array:
    """Return the flat numbers of batch items, (..., 1, 1, 1), from those along each axis."""
    flat = jnp.zeros((1,) * problem.ndim, jnp.int32)
    for axis, (length, along) in enumerate(zip(problem.batch, numbers, strict=True)):
        flat = flat * length + filled_up(jnp, along, problem.ndim, behind=problem.ndim - axis - 1)
    return flat


def _placed(rule: Any, origin: tuple[Any, ...], row: Array | None) -> Any:
    """Return a rule for the scores of a device, which begin at some batch item, head and row of the whole."""
    if isinstance(rule, CapturedBias | CapturedRule):
        return dataclasses.replace(rule, origin=origin)
    if isinstance(rule, RowMask):
        return rule if row is None else RowMask(rule.lengths - row)
    if isinstance(rule, Rule) and parts_of_kind(rule, Rule):
        return with_parts(rule, partial(_placed, origin=origin, row=row))
    return rule
