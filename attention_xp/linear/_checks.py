"""Checks of calls of linear attention, before any arithmetic."""

from typing import Any, NamedTuple

from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.sizes import is_open
from attention_xp._checks.arrays import check_floating, fits, shapes
from attention_xp._checks.numbers import check_count, check_name
from attention_xp._typing import Array
from attention_xp.linear._feature_maps import NAMED, RowMap
from attention_xp.linear._performer import PerformerFeatures

__all__ = ["Companions", "check_features", "check_lengths", "check_rule", "check_size", "row_map"]

# Whether a rule has a decay, and a beta.
_RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}
_LETTERS = {"decay": "(..., Hkv, S, 1) or (..., Hkv, S, D)", "beta": "(..., Hkv, S, 1)"}
_IMPLEMENTATIONS = ("auto", "recurrent", "chunked")


def check_rule(update_rule: Any, decay: Any, beta: Any) -> None:
    """Check that the rule exists, and that decay and beta are given exactly where it takes them."""
    check_name("update_rule", update_rule, _RULES)
    for i, (name, given) in enumerate((("decay", decay), ("beta", beta))):
        if _RULES[update_rule][i] and given is None:
            raise ValueError(f"{name} is required with update_rule={update_rule!r}: expected {name} {_LETTERS[name]}")
        if given is not None and not _RULES[update_rule][i]:
            having = " or ".join(repr(rule) for rule, uses in _RULES.items() if uses[i])
            raise ValueError(f"{name} has no place in update_rule={update_rule!r}: expected update_rule {having}")


def check_size(impl: Any, chunk_size: Any) -> int:
    """Return the number of positions of a chunk."""
    check_name("impl", impl, _IMPLEMENTATIONS)
    size = check_count("chunk_size", chunk_size)
    return 1 if impl == "recurrent" else size


def check_lengths(query: Array, key: Array) -> None:
    """Check that in causal order every query has its key, and that their number is known."""
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"key has length {key.shape[-2]} but query has length {query.shape[-2]}: in causal order (is_causal, a state, "
            f"or a rule other than 'linear') expected one key for each query, {shapes(query=query, key=key)}"
        )
    if is_open(key.shape[-2]):
        raise ValueError(
            "linear attention in causal order (is_causal, a state, or a rule other than 'linear') goes by chunks, and needs "
            f"a length that is known when it is exported: expected a number, {shapes(query=query, key=key)}; attention with "
            "is_causal=True takes lengths that are left open"
        )


def row_map(feature_map: Any) -> RowMap | None:
    """Return a feature map of our own; ``None`` for none, and for one of the caller's."""
    if isinstance(feature_map, str):
        if feature_map not in NAMED:
            raise ValueError(f"feature_map must be one of {', '.join(NAMED)}, None or a callable, got {feature_map!r}")
        return NAMED[feature_map]
    if feature_map is not None and not callable(feature_map):
        raise TypeError(f"feature_map must be a str, None or a callable, got {type(feature_map).__name__}")
    return feature_map if isinstance(feature_map, PerformerFeatures) else None


def check_features(query: Array, key: Array, mapped_query: Array, mapped_key: Array) -> None:
    """Check the features that a map of the caller's has returned."""
    for name, x, features in (("query", query, mapped_query), ("key", key, mapped_key)):
        made = {f"feature_map({name})": features}
        check_floating(common_namespace(**{name: x}, **made), **made)
        if tuple(features.shape[:-1]) != tuple(x.shape[:-1]):
            raise ValueError(
                f"feature_map must keep all axes but the last: expected ({', '.join(map(str, x.shape[:-1]))}, D), "
                f"{shapes(**{name: x}, **made)}"
            )
    if mapped_query.shape[-1] != mapped_key.shape[-1]:
        raise ValueError(
            "feature_map must make queries and keys equally wide, "
            f"{shapes(**{'feature_map(query)': mapped_query, 'feature_map(key)': mapped_key})}"
        )


class Companions(NamedTuple):
    """The sizes of a call that decays, betas and states must fit."""

    key: Array
    value: Array
    batch: tuple[int, ...]
    kv_heads: int | None

    def check(self, D: int, given: dict[str, Array]) -> None:
        """Check the shapes of what is given, where keys have `D` features."""
        S, Dv = self.key.shape[-2], self.value.shape[-1]
        expected: dict[str, tuple[str, list[tuple[int, ...]]]] = {
            "decay": ("S, 1 or D", [(S, 1), (S, D)]),
            "beta": ("S, 1", [(S, 1)]),
            "state.memory": ("D, Dv", [(D, Dv)]),
            "state.normalizer": ("D", [(D,)]),
        }
        lead = self.batch if self.kv_heads is None else (*self.batch, self.kv_heads)
        for name, a in given.items():
            letters, ends = expected[name]
            if not any(_fits(tuple(a.shape), lead, end, whole=name.startswith("state")) for end in ends):
                dots = "..." if self.kv_heads is None else "..., Hkv"
                sizes = " or ".join(str((*lead, *end)) for end in dict.fromkeys(ends))
                raise ValueError(
                    f"{name} does not fit: expected {name} ({dots}, {letters}) = {sizes}, "
                    f"{shapes(key=self.key, value=self.value)}, {name} {tuple(a.shape)}"
                )


def _fits(shape: tuple[int, ...], lead: tuple[int, ...], end: tuple[int, ...], *, whole: bool) -> bool:
    """Whether a shape broadcasts to the one expected; the width must be there, and a state as a whole."""
    own = len(end) if whole else 1
    return fits(shape, (*lead, *end)) and shape[-own:] == end[-own:]
