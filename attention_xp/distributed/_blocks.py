"""The blocks of a call on sharded arrays: a rank's rows under some keys, with the options that these have in the whole.

What is given to a rank are the masks, lengths and offsets of the whole. Array masks and array biases hold the rank's own
rows, in the order of its shard, and all keys, in the order of the sequence. Every strategy asks the same three things here:
the options of a block, whether any of its pairs is allowed, and what is wrong with the call.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_array_api_obj, is_jax_array

from attention_xp._engine.problem.options import DEFAULTS
from attention_xp._scores.frozen import freeze
from attention_xp._typing import Array
from attention_xp.distributed._layouts import Stretch, cut
from attention_xp.masks import CausalMask, LengthMask, Mask, WindowMask
from attention_xp.masks._mask import conjuncts, holds_array, with_arrays

__all__ = ["Call", "Rows"]

Cut = Callable[[Array, Stretch, int], Array]


class Rows(NamedTuple):
    """Adjacent rows of a rank: where they lie in the sequence, and in the shard."""

    whole: Stretch
    shard: Stretch

    @classmethod
    def of(cls, stretches: list[Stretch]) -> "list[Rows]":
        """Return those of a shard that holds stretches of the sequence one behind the other."""
        firsts = [sum(one.size for one in stretches[:i]) for i in range(len(stretches))]
        return [cls(whole, Stretch(first, whole.size)) for whole, first in zip(stretches, firsts, strict=True)]


class Call:
    """A call on a whole, as one rank knows it.

    Parameters
    ----------
    mask, dropout_rate, options
        Those of the whole, with array masks and biases of the rank's own rows.
    Sq, Sk : int
        The lengths of the whole.
    cut : callable
        ``cut(array, stretch, axis)``, for libraries in which a stretch may start where only the program knows.
    """

    def __init__(
        self, mask: Any, dropout_rate: Any, options: Mapping[str, Any], *, Sq: int, Sk: int, cut: Cut = cut
    ) -> None:
        self.mask, self.dropout_rate, self._cut = mask, dropout_rate, cut
        self.options = {name: given for name, given in options.items() if given is not DEFAULTS.get(name, None)}
        self.Sq, self.Sk = Sq, Sk
        rules = _rules(mask, self.options)
        self._is_relative = any(rule.relative for rule in rules)
        # Arrays of pairs are not asked: they are of the rank's own rows.
        self._rules = [part for rule in rules for part in conjuncts(rule) if not holds_array(part)]
        self._rule = reduce(and_, self._rules) if self._rules else None
        self._refuse_to_guess()

    def _refuse_to_guess(self) -> None:
        """Refuse what ranks could not agree on."""
        rng, rate = self.options.get("rng"), self.dropout_rate
        if rate and not isinstance(rng, int) and not is_jax_array(rng):
            raise ValueError("rng must be an int seed or a JAX key, the same on all ranks, where dropout_rate is not 0")
        is_moved = any(name in self.options for name in ("key_offset", "key_positions"))
        if self._is_relative and "query_offset" not in self.options and (is_moved or self.Sq != self.Sk):
            raise ValueError(
                "query_offset is required with a causal or window mask where the sequences of queries and keys differ in "
                f"length or keys are moved: expected the position of the first query, got {self.Sq} queries and {self.Sk} keys"
            )

    def block(self, rows: Rows, keys: Stretch, *, with_sinks: bool) -> tuple[Any, dict[str, Any]]:
        """Return the mask and the other options of some rows under some keys; sinks belong to one block of each row."""
        options = dict(self.options)
        options["query_offset"] = self.options.get("query_offset", 0) + rows.whole.start
        if "key_positions" in options:
            options["key_positions"] = self._cut(options["key_positions"], keys, -1)
        else:
            options["key_offset"] = self.options.get("key_offset", 0) + keys.start
        if "query_lengths" in options:
            options["query_lengths"] = _lowered(options["query_lengths"], rows.whole.start)
        if "bias" in options:
            options["bias"] = self._part(options["bias"], rows, keys)
        if not with_sinks:
            options.pop("sinks", None)
        return self._part(self.mask, rows, keys), {**options, "dropout_rate": self.dropout_rate}

    def _part(self, given: Any, rows: Rows, keys: Stretch) -> Any:
        """Return the part of a block of what is of the rank's own rows and all keys; a rule serves all blocks."""

        def cut_out(array: Array) -> Array:
            for stretch, axis in self.places(array, rows, keys):
                array = self._cut(array, stretch, axis)
            return array

        return with_arrays(given, cut_out)

    def places(self, array: Any, rows: Rows, keys: Stretch) -> list[tuple[Stretch, int]]:
        """Return where a block lies in an array of the rank's own rows and all keys, and along which axes."""
        found = []
        if array.ndim >= 1 and array.shape[-1] not in (1, keys.size):
            found.append((keys, -1))
        if array.ndim >= 2 and array.shape[-2] != 1:
            found.append((rows.shard, -2))
        return found

    @property
    def band(self) -> tuple[int | None, int | None]:
        """How far before and behind a row the keys reach that it may attend; None on a side where that is not known."""
        bands = [rule._as_band or (None, None) for rule in self._rules]
        left, right = zip((None, None), *bands, strict=True)
        return _least(left), _least(right)

    def any_allowed(self, rows: Rows, keys: Stretch) -> Any:
        """Return whether some rows may attend some keys, in any batch item and head: a bool, or a traced array."""
        offset, first = self.options.get("query_offset", 0), self.options.get("key_offset", 0)
        if self._rule is None or "key_positions" in self.options:
            return True
        if not isinstance(offset, int) and is_array_api_obj(offset) and offset.ndim:
            return True  # an offset for each batch item
        if is_array_api_obj(first) and first.ndim:
            return True
        return self._rule.any_allowed(rows.whole.bounds, keys.bounds, query_offset=offset, key_offset=first)

    @property
    def identity(self) -> Any:
        """What `any_allowed` depends on, as a value; None where arrays are a part of it, which may change."""
        offsets = [self.options.get(name, 0) for name in ("query_offset", "key_offset")]
        is_plain = "key_positions" not in self.options and all(isinstance(one, int) for one in offsets)
        return (self._rule, *offsets) if is_plain and not freeze((self._rule,))[1] else None


def _least(numbers: tuple[int | None, ...]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


def _rules(mask: Any, options: Mapping[str, Any]) -> list[Mask]:
    """Return the rules of a call, of which all have to allow a pair."""
    rules: list[Mask] = [mask] if isinstance(mask, Mask) else []
    if options.get("is_causal"):
        rules.append(CausalMask())
    window = options.get("window")
    if window is not None:
        rules.append(WindowMask(*window) if isinstance(window, tuple) else WindowMask(window, window))
    if "key_lengths" in options:
        rules.append(LengthMask(options["key_lengths"]))
    return rules


def _lowered(lengths: Any, start: Any) -> Any:
    """Return how many rows of a block are within lengths, counted from its first."""
    lowered = lengths - start
    return max(lowered, 0) if isinstance(lowered, int) else array_namespace(lowered).clip(lowered, min=0)
