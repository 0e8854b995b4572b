"""A call that is described by numbers: its arrays here and there, and how many pairs it computes."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from attention_xp._alibi import alibi_slopes
from attention_xp._attention import scaled_dot_product_attention
from attention_xp._command.backward import with_gradients
from attention_xp._command.places import Place, Side
from attention_xp._typing import Array
from attention_xp.biases import AlibiBias
from attention_xp.masks import CausalMask, LengthMask, Mask, SegmentMask, WindowMask

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """A call of attention: sizes, and the options that can be given by numbers."""

    batch: int
    heads: int
    queries: int
    width: int
    keys: int
    kv_heads: int
    value_width: int
    dtype: str = "float32"
    is_causal: bool = False
    window: tuple[int | None, int | None] | None = None
    query_offset: int | None = None
    key_length: int | None = None
    segment: int | None = None  # the length of the sequences in a row
    has_alibi: bool = False
    softcap: float | None = None
    dropout_rate: float = 0.0
    weights: bool = False
    is_backward: bool = False
    impl: str = "auto"

    @classmethod
    def square(cls, heads: int, length: int, width: int, **rest: Any) -> "Call":
        """Return the call of one batch item in which queries and keys are equally many."""
        return cls(1, heads, length, width, length, heads, width, **rest)

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The shapes of query, key and value."""
        kv = self.batch, self.kv_heads, self.keys
        return (self.batch, self.heads, self.queries, self.width), (*kv, self.width), (*kv, self.value_width)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the call."""
        return {
            "mask": self._segments,
            "bias": AlibiBias(alibi_slopes(self.heads)) if self.has_alibi else None,
            "dropout_rate": self.dropout_rate,
            "rng": 0 if self.dropout_rate else None,
            "is_causal": self.is_causal,
            "window": self.window,
            "query_offset": self.query_offset,
            "key_lengths": self.key_length,
            "softcap": self.softcap,
            "impl": self.impl,
        }

    @property
    def _segments(self) -> Mask | None:
        """The rule that keeps sequences in a row apart."""
        if self.segment is None:
            return None
        return SegmentMask(np.arange(max(self.keys, (self.query_offset or 0) + self.queries)) // self.segment)

    @property
    def mask(self) -> Mask | None:
        """What the options exclude, as one rule."""
        rules: list[Mask] = [CausalMask()] if self.is_causal else []
        rules += [] if self.window is None else [WindowMask(*self.window)]
        rules += [] if self.key_length is None else [LengthMask(self.key_length)]
        rules += [] if self._segments is None else [self._segments]
        mask = None
        for rule in rules:
            mask = rule if mask is None else mask & rule
        return mask

    @property
    def density(self) -> float:
        """The share of the pairs of a head that is allowed."""
        return 1.0 if self.mask is None else self.mask.density(self.queries, self.keys, self.query_offset or 0)

    @property
    def pairs(self) -> float:
        """The allowed pairs of all heads."""
        return self.batch * self.heads * self.queries * self.keys * self.density

    @property
    def result_bytes(self) -> int:
        """The bytes of the output, and of the gradients where they are asked for."""
        output = self.batch * self.heads * self.queries * self.value_width * self.itemsize
        return output + (self.input_bytes if self.is_backward else 0)

    @property
    def input_bytes(self) -> int:
        """The bytes of query, key and value."""
        return sum(int(np.prod(shape, dtype=object)) for shape in self.shapes) * self.itemsize

    @property
    def itemsize(self) -> int:
        """The bytes of a number."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    def with_lengths(self, queries: int, keys: int) -> "Call":
        """Return the same for other lengths: positions and ends move in proportion, windows and segments do not."""

        def moved(place: int | None) -> int | None:
            return None if place is None else round(place * keys / max(self.keys, 1))

        return replace(
            self, queries=queries, keys=keys, query_offset=moved(self.query_offset), key_length=moved(self.key_length)
        )

    def arrays(self, place: Place) -> tuple[Array, ...]:
        """Return random query, key and value."""
        draw = np.random.default_rng(0).standard_normal
        return tuple(place.array(draw(shape, dtype=np.float32), self.dtype) for shape in self.shapes)

    def ours(self, place: Place, arrays: tuple[Array, ...]) -> Side:
        """Return the call in this package."""
        options = self.options
        attend = partial(scaled_dot_product_attention, return_weights=self.weights, **options)
        if self.weights:
            return place.side(attend, *arrays)

        def output(*arrays: Array) -> Array:
            return attend(*arrays)[0]

        return place.side(with_gradients(place.backend, output, options) if self.is_backward else output, *arrays)
