"""The primitives of NumPy that the forward and the backward step share: they overwrite the scores.

They return what those of `Arithmetic` do. Scores lie in memory as keys x queries, behind a transposed view, where nothing
of (Sq, Sk) is combined with them: neither product then needs a transposed copy, and reductions over the keys run along
the first axis, which NumPy vectorises well. Otherwise they lie as queries x keys, as arrays of (Sq, Sk) do.
"""

import math

import numpy as np

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic, allowed_pairs
from attention_xp._engine.tile.base import lowest_score
from attention_xp._engine.walkers.numpy.compiled.constants import LEAST_FORWARD
from attention_xp._engine.walkers.numpy.compiled.found import passes_of
from attention_xp._engine.walkers.numpy.compiled.passes import Tile
from attention_xp._engine.walkers.numpy.heads import Magnitudes
from attention_xp._random.in_place import Survivors
from attention_xp._random.survivors import head_key
from attention_xp._scores.identity import identity
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = ["SAFE", "InPlace", "Patches", "by_key_head"]

_NEVER = 0.9  # of the largest number: a score from which it is subtracted is not the maximum, and not NaN
SAFE = 124.0  # powers of two in float32 are fast from -124 to 124; subnormal ones take up to a hundred times as long
_WHOLE_RUN = 32  # columns without an exclusion, at least, for which a patch is split in two

_SMALL, _MOST_KEPT = 2**17, 64  # pairs of the patches of a tile that are kept for other calls, and how many such tiles

Patches = list[tuple[slice, Array]]  # columns of a tile, and which of its pairs there are allowed
_KEPT: dict[object, Patches] = {}


class InPlace(Arithmetic):
    """Primitives that allocate no arrays of the size of a tile."""

    least = LEAST_FORWARD  # powers of two below this one of a half count nothing in float32

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._lead = (1,) * (len(problem.lead) - 1)
        self._keep: dict[object, Patches] = {}
        self._found: dict[object, tuple[tuple[Mask, ...], Patches]] = {}
        self.by_keys = _meets_lines_only(problem)  # how scores are laid out
        self._survivors = Survivors(problem.dropout_rate)
        self._head_keys: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        self._safe = SAFE * self.base.log_2
        is_single = problem.dtype == np.float32
        self._least = (self.least if is_single else SAFE) * self.base.log_2
        self._excess = _NEVER * float(np.finfo(problem.dtype).max)
        self.magnitudes: Magnitudes  # of the heads at hand
        self.compiled = passes_of(problem, self._least if is_single else math.inf)
        self._flags = problem.dtype if self.compiled is None else bool  # of patches: numbers are multiplied faster
        # Sums of the weights of each row of the tile at hand, where compiled passes found them.
        self._sums_of_rows: Array | None = None

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y in x."""
        return np.add(x, y, out=x)

    def multiply(self, x: Array, y: Array | float) -> Array:
        """Return x * y in x."""
        return np.multiply(x, y, out=x)

    def in_base(self, scores: Array) -> Array:
        """Multiply in place; scores stay finite unless a rule excludes them."""
        if self.base.log_e == 1.0:
            return scores
        if len(self.problem.addends) > 0 and not (self.magnitudes.bounded and self.magnitudes.tame):
            if not self.magnitudes.clip:  # minus infinity may be among the scores
                return self.replace(scores, super().in_base(scores))
            np.clip(scores, lowest_score(np, scores.dtype), None, out=scores)
        return np.multiply(scores, self.base.log_e, out=scores)

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent in x."""
        if self.compiled is None or self.base.log_e != 1.0:  # NumPy's is fast where its powers of 2 are
            return np.tanh(x, out=x)
        self.compiled.tanh(self.tile(x))
        return x

    def replace(self, old: Array, new: Array) -> Array:
        """Return `new` in the memory of `old`, which may be a part of a larger array."""
        if new is not old:
            np.copyto(old, new)
        return old

    @property
    def lies_by_keys(self) -> bool:
        """Whether the tile at hand is laid out keys x queries."""
        return self.by_keys

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> Patches | None:
        """Return which pairs all rules allow as patches, in the layout of the scores.

        Where rules depend on the difference of positions alone, as a causal mask, the patches are the same for all tiles
        along the diagonal and in every call, and are kept.
        """
        if len(rules) == 0:
            return None
        if not self.problem.shift_invariant(rules):
            allowed = allowed_pairs(rules, region)
            return [(slice(region.sizes[-1]), _by_columns(allowed) if self.lies_by_keys else allowed)]
        first = (
            region.starts[-2] + (self.problem.query_offset or 0) - region.starts[-1] - (self.problem.key_offset or 0)
        )
        about = first, region.sizes[-2:], self.lies_by_keys
        known = self._found.get((id(rules), *about))
        if known is None:  # comparing rules by identity takes as long as a small tile: done once for each tuple
            name = identity(rules), self._flags, *about
            patches = _KEPT.get(name) or self._keep.get(name) or self._kept(name, rules, region)
            known = self._found[id(rules), *about] = rules, patches
        return known[1]

    def _kept(self, name: object, rules: tuple[Mask, ...], region: Region) -> Patches:
        """Make patches; small ones are kept for all calls, others for this call."""
        allowed = np.asarray(allowed_pairs(rules, region), self._flags)
        allowed = np.broadcast_to(allowed.reshape(allowed.shape[-2:]), region.sizes[-2:])
        patches = self._cut(np.asarray(allowed, order="F" if self.lies_by_keys else "C"))
        if sum(pairs.size for _, pairs in patches) > _SMALL:
            return self._keep.setdefault(name, patches)
        if len(_KEPT) >= _MOST_KEPT:
            _KEPT.clear()
        return _KEPT.setdefault(name, patches)

    def _cut(self, allowed: Array) -> Patches:
        """Return the columns of (m, n) in which a pair is excluded; those that are close together are one patch."""
        columns = np.flatnonzero(np.min(allowed, axis=0) == 0)
        runs = np.split(columns, np.flatnonzero(np.diff(columns) > _WHOLE_RUN) + 1)
        patches = [slice(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
        return [(patch, allowed[..., patch]) for patch in patches]

    def exclude(self, scores: Array, allowed: Patches, mixed: Bounds) -> Array:
        """Lower scores that are not allowed, so that they are not the maximum, unless no maximum is needed."""
        if self.compiled is not None:
            for columns, pairs in allowed:
                self.compiled.exclude(self.tile(scores), scores[..., slice(*mixed), columns], pairs)
            return scores
        if self.magnitudes.tame and self.magnitudes.bounded:
            return scores
        for columns, pairs in allowed:
            part = scores[..., slice(*mixed), columns]
            if self.magnitudes.tame:
                np.subtract(part, np.multiply(pairs == 0, self._excess, dtype=scores.dtype), out=part)
            else:
                np.copyto(part, -math.inf, where=pairs == 0)
        return scores

    def powers(self, scores: Array, shift: Array | None, allowed: Patches | None, mixed: Bounds) -> Array:
        """Compute powers in place, of scores clipped to the range where that is fast, times 0 where not allowed."""
        # NumPy's powers of 2 in vector registers are faster, where there is nothing else to do in the same pass.
        is_numpys = self.base.log_e != 1.0 and shift is None and allowed is None
        if self.compiled is not None and not is_numpys:  # what is not allowed is minus infinity already
            sums = self.compiled.powers(self.tile(scores), shift)
            self._sums_of_rows = sums.reshape(*scores.shape[:-1], 1)
            return scores
        self._sums_of_rows = None
        if shift is not None:
            np.subtract(scores, shift, out=scores)
        whole = self._whole(scores)
        if self.magnitudes.clip:
            np.clip(whole, -self._least, self._safe, out=whole)
        self.base.power(whole, out=whole)
        for columns, pairs in allowed or ():
            part = scores[..., slice(*mixed), columns]
            np.multiply(part, pairs, out=part)
        return scores

    def tile(self, scores: Array) -> Tile:
        """Return the memory of scores, which lie without gaps."""
        lines = scores.mT if self.by_keys else scores
        return Tile(lines.reshape(-1, *lines.shape[-2:]), lines.shape[-1], self.by_keys)

    def peak(self, so_far: Array, scores: Array) -> Array:
        """Return the largest score of each row, (..., m, 1)."""
        if self.compiled is None:
            return super().peak(so_far, scores)
        return self.compiled.peak(self.tile(scores), so_far)

    def survivors(self, region: Region) -> Array:
        """Return which weights survive dropout, keys x queries behind a transposed view."""
        if not self.problem.keys_count_up:
            return super().survivors(region)
        *lead, m, n = region.sizes
        at = tuple(region.starts[:-2])
        if at not in self._head_keys:
            words = head_key(self.problem.seed, b=region.b, h=region.h)  # type: ignore[arg-type]
            pair = (np.broadcast_to(word, (*lead, 1, 1)).astype(np.uint32).ravel().tolist() for word in words)
            self._head_keys[at] = list(zip(*pair, strict=True))
        first = int(region.q_idx.flat[0]), int(region.kv_idx.flat[0])
        survivors = self._survivors.of_tile if self.compiled is None else self.compiled.survivors
        return survivors(self._head_keys[at], first, (m, n)).reshape(region.sizes)

    def thin(self, x: Array, keep: Array) -> Array:
        """Multiply x in place, by 0 for what does not survive."""
        if self.compiled is not None:
            return self.compiled.thin(self.tile(x), x, keep)
        return np.multiply(x, keep, out=x)

    def _whole(self, scores: Array) -> Array:
        """Return all the memory of the scores, including gaps between lines."""
        return scores


def by_key_head(x: Array, keys: Array, axes: int = 2) -> Array:
    """Return a view of (..., H, m, n) as (K, H / K, m, n), with the heads grouped by the K key/value heads of `keys`.

    `axes` is the number of axes behind the heads.
    """
    return x.reshape(len(keys), -1, *x.shape[-axes:])


def _meets_lines_only(problem: Problem) -> bool:
    """Whether nothing of (Sq, Sk) is combined with the scores of many tiles.

    The patches of shift-invariant rules are kept in any layout, and rules with `reach` are evaluated on few tiles.
    """
    return (
        problem.score_mod is None
        and all(map(_is_line, problem.addends))
        and all(
            rule.shift_invariant or (rule.tells if rule._as_array is None else _is_line(rule._as_array))
            for rule in problem.rules
        )
    )


def _is_line(array: Array | Bias) -> bool:
    return not isinstance(array, Bias) and (array.ndim < 2 or 1 in array.shape[-2:])


def _by_columns(allowed: Array) -> Array:
    """Return flags (..., m, n) that lie in memory as keys x queries."""
    return np.ascontiguousarray(allowed.mT).mT if allowed.ndim > 1 else allowed
