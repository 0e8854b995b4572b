"""A call of linear attention, checked and aligned: nothing is checked again afterwards."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from attention_xp._backend.dtypes import as_dtype, computation_dtype
from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, check_inputs, check_placement
from attention_xp._checks.numbers import check_flag, check_number
from attention_xp._public_types import Generic, HeldT
from attention_xp._typing import Array, DType, Namespace
from attention_xp.linear._checks import Companions, check_features, check_lengths, check_rule, check_size, row_map
from attention_xp.linear._chunk import Carry
from attention_xp.linear._feature_maps import FeatureMap, RowMap

__all__ = ["Grouping", "LinearProblem", "LinearState"]


class LinearState(NamedTuple, Generic[HeldT]):
    """The state of linear attention after some positions; as a named tuple, it is a pytree of JAX.

    `memory` is ``(..., Hkv, D, Dv)`` and `normalizer`, the sum of the keys, ``(..., Hkv, D)``, or ``None``
    where no output is divided by it. With a feature map, ``D`` is the number of features.
    """

    memory: HeldT
    normalizer: HeldT | None = None


class Grouping(NamedTuple):
    """Gives the query heads that share a key/value head an axis of their own, along which keys and values broadcast."""

    xp: Namespace
    ndim: int
    group: int

    def split(self, x: Array) -> Array:
        """(..., H, S, D) -> (..., Hkv, G, S, D)."""
        if self.group == 1:
            return x
        *lead, heads, S, D = x.shape
        return self.xp.reshape(x, (*lead, heads // self.group, self.group, S, D))

    def join(self, x: Array) -> Array:
        """(..., Hkv, G, S, D) -> (..., H, S, D)."""
        if self.group == 1:
            return x
        *lead, kv_heads, group, S, D = x.shape
        return self.xp.reshape(x, (*lead, kv_heads * group, S, D))

    def shared(self, x: Array) -> Array:
        """(..., Hkv, S, D) -> (..., Hkv, 1, S, D), leading axes filled up."""
        shape = (1,) * (self.ndim - x.ndim) + tuple(x.shape)
        shape = shape if self.group == 1 else (*shape[:-2], 1, *shape[-2:])
        return x if shape == tuple(x.shape) else self.xp.reshape(x, shape)

    def rows(self, x: Array, length: int) -> Array:
        """Like `shared`, with `length` rows."""
        x = self.shared(x)
        return x if x.shape[-2] == length else self.xp.broadcast_to(x, (*x.shape[:-2], length, x.shape[-1]))


@dataclass(frozen=True)
class LinearProblem:
    """The arguments of a call; arrays have the axes that `Grouping` gives them."""

    xp: Namespace
    query: Array  # (..., [Hkv, G,] Sq, D)
    key: Array  # (..., [Hkv, 1,] Sk, D), and likewise below
    value: Array
    decay: Array | None
    beta: Array | None
    memory: Array | None
    key_sum: Array | None
    dtype: DType
    feature_map: RowMap | None
    scale: float
    normalize: bool
    causal: bool
    size: int
    batch: tuple[int, ...]
    kv_heads: int | None
    grouping: Grouping

    _numbers: ClassVar = ("scale",)  # which may be arrays; see `freeze`

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the state."""
        given = [self.key, self.value, self.decay, self.beta, self.memory, self.key_sum]
        leads = [tuple(a.shape[:-2]) for a in given if a is not None]
        return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*leads, strict=True))

    @property
    def features(self) -> int:
        """The width of mapped queries and keys."""
        D: int = self.key.shape[-1]
        return D if self.feature_map is None else self.feature_map.width(D)

    def state(self, carry: Carry) -> LinearState:
        """Return the state for all of the batch."""
        xp = self.xp
        memory, key_sum = (a if a is None or self.grouping.group == 1 else xp.squeeze(a, axis=-3) for a in carry)
        lead = self.batch if self.kv_heads is None else (*self.batch, self.kv_heads)
        memory = xp.broadcast_to(memory, (*lead, *memory.shape[-2:]))
        return LinearState(
            memory, None if key_sum is None else xp.broadcast_to(key_sum, (*lead, *key_sum.shape[-2:]))[..., 0, :]
        )

    @classmethod
    def of(
        cls,
        query: Array,
        key: Array,
        value: Array,
        *,
        feature_map: str | FeatureMap | None = "elu",
        normalize: bool | None = None,
        is_causal: bool = False,
        update_rule: str = "linear",
        decay: Array | None = None,
        beta: Array | None = None,
        scale: float | None = None,
        state: LinearState | None = None,
        chunk_size: int = 64,
        impl: str = "auto",
        apply: Callable[[FeatureMap, Array], Array] = lambda feature_map, x: feature_map(x),
    ) -> "LinearProblem":
        """Check a call and align its arrays; `apply` maps queries and keys by a feature map of the caller's."""
        check_rule(update_rule, decay, beta)
        given = _companions(decay, beta, state)
        xp = common_namespace(query=query, key=key, value=value, **given)
        batch, heads, kv_heads = check_inputs(xp, query, key, value)
        check_floating(xp, **given)
        check_placement(xp, query=query, **given)
        causal = check_flag("is_causal", is_causal) or update_rule != "linear" or state is not None
        if causal:
            check_lengths(query, key)
        size = check_size(impl, chunk_size)
        ours = row_map(feature_map)
        fit = Companions(key, value, batch, kv_heads)
        scale = _default_scale(query, feature_map) if scale is None else check_number("scale", scale)
        normalize = feature_map is not None if normalize is None else check_flag("normalize", normalize)
        if state is not None and normalize and state.normalizer is None:
            raise ValueError(
                "state.normalizer is required to normalize: expected the sum of the keys so far, (..., Hkv, D), "
                "or normalize=False"
            )
        if ours is None and callable(feature_map):
            mapped = [apply(feature_map, as_dtype(xp, x, computation_dtype(xp, x.dtype))) for x in (query, key)]
            check_features(query, key, *mapped)
            query, key = mapped
        fit.check(key.shape[-1] if ours is None else ours.width(key.shape[-1]), given)
        grouping = Grouping(xp, key.ndim, heads // kv_heads if heads and kv_heads else 1)
        S = key.shape[-2]
        return cls(
            xp=xp,
            query=grouping.split(query),
            key=grouping.shared(key),
            value=grouping.shared(value),
            decay=None if decay is None else grouping.rows(decay, S),
            beta=None if beta is None else grouping.rows(beta, S),
            memory=None if state is None else grouping.shared(state.memory),
            key_sum=_key_sum(grouping, state),
            dtype=computation_dtype(xp, value.dtype),
            feature_map=ours,
            scale=scale,
            normalize=normalize,
            causal=causal,
            size=size,
            batch=batch,
            kv_heads=kv_heads,
            grouping=grouping,
        )


def _companions(decay: Any, beta: Any, state: Any) -> dict[str, Array]:
    """Return the optional arrays of a call by name."""
    if state is not None and not isinstance(state, LinearState):
        raise TypeError(f"state must be a LinearState, got {type(state).__name__}")
    given = {"decay": decay, "beta": beta}
    if state is not None:
        given |= {"state.memory": state.memory}
    if state is not None and state.normalizer is not None:
        given |= {"state.normalizer": state.normalizer}
    return {name: a for name, a in given.items() if a is not None or name == "state.memory"}


def _default_scale(query: Array, feature_map: Any) -> float:
    return 1.0 if feature_map is not None or query.shape[-1] == 0 else 1.0 / math.sqrt(query.shape[-1])


def _key_sum(grouping: Grouping, state: LinearState | None) -> Array | None:
    if state is None or state.normalizer is None:
        return None
    # One row, with the leading axes of the memory.
    return grouping.shared(grouping.xp.expand_dims(state.normalizer, axis=-2))
