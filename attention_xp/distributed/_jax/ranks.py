"""The ranks of a call inside `jax.shard_map`: which rows and keys each holds, and what every strategy does with them."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attention_xp._attention import flash_attention
from attention_xp._backend.dtypes import computation_dtype
from attention_xp._backend.sharding import spread_over, varying_axes
from attention_xp._checks.arrays import shapes
from attention_xp._merge import merge_attention
from attention_xp._typing import Array, DType
from attention_xp.distributed._blocks import Call, Cut, Rows
from attention_xp.distributed._layouts import Layout, Stretch, check_lengths, stretches

__all__ = [
    "How",
    "Ranks",
    "dynamic_cut",
    "finished",
    "partial_result",
    "spread",
    "swapped",
]


_PLACES = ("query_offset", "key_offset", "key_positions", "query_lengths", "key_lengths")


def dynamic_cut(array: Array, stretch: Stretch, axis: int) -> Array:
    """Cut a stretch out of an array; where it starts, the program may know alone."""
    return lax.dynamic_slice_in_dim(array, stretch.start, stretch.size, axis=axis)


class Ranks(NamedTuple):
    """The devices along an axis of a mesh, and the lengths of the whole."""

    group: Any  # the name of the axis, or of two
    n: int
    layout: Layout
    Sq: int
    Sk: int

    @classmethod
    def of(
        cls,
        query: Array,
        key: Array,
        mask: Any,
        options: Mapping[str, Any],
        how: "How",
        *,
        whole_rows: bool = False,
        on_two_axes: bool = False,
    ) -> "Ranks":
        """Check what a call says of its ranks; with `whole_rows`, each rank holds all rows."""
        if how.timeout is not None:
            raise ValueError("timeout is for torch: in JAX, XLA decides how long devices wait for each other")
        is_pair = on_two_axes and isinstance(how.group, tuple)
        if is_pair and (len(how.group) != 2 or how.group[0] == how.group[1]):
            raise ValueError(f"group must be the name of one axis or of two, (ring, heads), got {how.group!r}")
        n = math.prod(map(_size, how.group)) if is_pair else _size(how.group)
        Sq, Sk = query.shape[-2] * (1 if whole_rows else n), key.shape[-2] * n
        for length in (Sk,) if whole_rows else (Sq, Sk):
            check_lengths(n, length, how.layout)
        for name, array in (("mask", mask), ("bias", options.get("bias"))):
            if hasattr(array, "ndim") and not _has_sizes(array, query.shape[-2], Sk):
                raise ValueError(
                    f"{name} must hold the rows of this rank and all keys: expected {name} (..., {query.shape[-2]}, {Sk}), "
                    f"{shapes(**{name: array})}"
                )
        positions = options.get("key_positions")
        if positions is not None and positions.shape[-1] != Sk:
            raise ValueError(
                f"key_positions must hold those of all keys: expected {Sk}, {shapes(key_positions=positions)}"
            )
        return cls(how.group, n, how.layout, Sq, Sk)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes."""
        return self.group if isinstance(self.group, tuple) else (self.group,)

    def along(self) -> "tuple[Ranks | None, Ranks]":
        """Return the ring, ``None`` where there is one axis, and the devices at one place of the ring, which exchange heads.

        The ring deals out the sequence; these devices deal out, in the same layout, the shard of their place.
        """
        if len(self.axes) == 1:
            return None, self
        ring, heads = self.axes
        n = _size(ring)
        return self._replace(group=ring, n=n), Ranks(heads, self.n // n, self.layout, self.Sq // n, self.Sk // n)

    @property
    def rank(self) -> Array:
        """The number of this device."""
        return lax.axis_index(self.group)

    def rows(self) -> list[Rows]:
        """Return the rows of this device, in the order of its shard."""
        return Rows.of(stretches(self.n, self.rank, self.Sq, self.layout))

    def keys(self, rank: Any) -> list[Rows]:
        """Return where the keys of a device lie in the sequence, and in its shard."""
        return Rows.of(stretches(self.n, rank, self.Sk, self.layout))

    def call(self, mask: Any, dropout_rate: Any, options: Mapping[str, Any], cut: Cut = dynamic_cut) -> Call:
        """Return the call on the whole; sinks are merged when all else is."""
        rest = {
            name: _narrow(given) if name in _PLACES else given for name, given in options.items() if name != "sinks"
        }
        return Call(mask, dropout_rate, rest, Sq=self.Sq, Sk=self.Sk, cut=cut)

    def in_order(self, gathered: Array, axis: int = -2) -> Array:
        """Return shards that lie one behind the other in the order of the sequence."""
        return self._ordered(gathered, axis, back=False)

    def in_ranks(self, whole: Array, axis: int = -2) -> Array:
        """Return a sequence in the order of shards that lie one behind the other."""
        return self._ordered(whole, axis, back=True)

    def _ordered(self, array: Array, axis: int, *, back: bool) -> Array:
        if self.layout == "contiguous":
            return array
        length = array.shape[axis]
        held = [one for rank in range(self.n) for one in stretches(self.n, rank, length, self.layout)]
        rows = sorted(Rows.of(held), key=lambda rows: (rows.shard if back else rows.whole).start)
        pieces = [dynamic_cut(array, one.whole if back else one.shard, axis) for one in rows]
        return jnp.concatenate(pieces, axis=axis)


def _narrow(given: Any) -> Any:
    """Return an array of integers as one of int32, as the numbers of devices are; a number as it is."""
    return jnp.asarray(given).astype(jnp.int32) if hasattr(given, "ndim") else given


class How(NamedTuple):
    """The arguments that all strategies share."""

    group: Any
    layout: Layout
    return_lse: bool
    timeout: float | None


def _size(group: Any) -> int:
    if not isinstance(group, str):
        raise TypeError(f"group must be the name of an axis of the mesh, got {type(group).__name__}")
    try:
        return int(lax.axis_size(group))
    except NameError:
        raise ValueError(
            f"group must be the name of an axis of the mesh inside jax.shard_map, got {group!r}, which is none here"
        ) from None


def _has_sizes(array: Array, rows: int, keys: int) -> bool:
    wanted = (rows, keys)[2 - min(array.ndim, 2) :]
    return all(
        size in (1, length) for size, length in zip(array.shape[-len(wanted) :] if wanted else (), wanted, strict=True)
    )


def spread(arrays: Any, ranks: Ranks) -> Any:
    """Return arrays with types that vary over the ranks, and over what else one of them varies over.

    What all ranks hold alike has gradients from all of them: JAX sums these up where the type was changed.
    """
    axes = varying_axes(arrays) | set(ranks.axes)

    def spread(array: Array) -> Array:
        if varying_axes(array) == axes or not jnp.issubdtype(array.dtype, jnp.floating):
            return spread_over(array, axes)
        return swapped(partial(spread_over, axes=axes), array).astype(array.dtype)

    return jax.tree.map(spread, arrays)


def partial_result(
    query: Array, key: Array, value: Array, mask: Any, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Return output and log-sum-exp of a block of rows and keys, both in the dtype of the computation."""
    dtype = computation_dtype(jnp, query.dtype)
    output, lse = flash_attention(query, key, value, mask, **options, output_dtype=dtype, return_lse=True)
    return output, lse


def finished(output: Array, lse: Array, rows: list[Rows], options: Mapping[str, Any], dtype: DType, how: How) -> Any:
    """Return the result of a strategy from that of all keys: sinks take their share, and the output its dtype."""
    if options.get("sinks") is not None:
        logits = jnp.broadcast_to(jnp.expand_dims(options["sinks"], axis=-1), lse.shape).astype(lse.dtype)
        logits = _of_given_rows(logits, rows, options.get("query_lengths"))
        output, lse = merge_attention([output, jnp.zeros_like(output)], [lse, logits])
    output = output.astype(dtype)
    return (output, lse) if how.return_lse else output


def _of_given_rows(logits: Array, rows: list[Rows], lengths: Any) -> Array:
    """Return the logits of sinks (..., H, Sq), -inf in rows that are none of the query: these attend no sink either."""
    if lengths is None:
        return logits
    numbers = jnp.concatenate([one.whole.start + jnp.arange(one.whole.size, dtype=jnp.int32) for one in rows])
    numbers = jnp.expand_dims(numbers, axis=tuple(range(logits.ndim - 1)))
    lengths = jnp.asarray(_narrow(lengths))
    lengths = jnp.reshape(lengths, (*lengths.shape, *[1] * (logits.ndim - lengths.ndim)))
    return jnp.where(numbers < lengths, logits, -jnp.inf)


def swapped(move: Callable[[Array], Array], array: Array) -> Array:
    """Return ``move(array)``, which is linear, in the dtype of the computation.

    The array moves as it is. The gradients of several ranks are summed up in the wide dtype, and rounded once.
    """
    dtype = computation_dtype(jnp, array.dtype)

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def moved(array: Array) -> Array:
        return move(array).astype(dtype)

    def forward(array: Array) -> tuple[Array, None]:
        return moved(array), None

    def backward(_: None, gradient: Array) -> tuple[Array]:
        like = jax.typeof(array).update(dtype=dtype)
        (found,) = jax.linear_transpose(move, like)(gradient)
        return (found.astype(array.dtype),)

    moved.defvjp(forward, backward)
    return moved(array)
