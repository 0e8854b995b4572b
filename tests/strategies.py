"""Random calls of attention: any subset of the options, at any broadcastable shape."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests._backends import Backend, to_numpy
from tests.score_mods import distance_penalty

_LEADING = st.sampled_from([1, 1, 2, 2, 2, 0])


@dataclass(frozen=True)
class Case:
    """One call of attention, in NumPy: the inputs, the mask and the other options."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    mask: np.ndarray | None
    options: dict[str, Any]
    dtype: str

    def inputs(self, library: Backend) -> tuple[Any, Any, Any]:
        """Query, key and value as arrays under test."""
        return tuple(library.array(x, self.dtype) for x in (self.query, self.key, self.value))

    def keywords(self, library: Backend) -> dict[str, Any]:
        """The mask and the options as keyword arguments under test."""
        made = {"mask": self.mask} | self.options
        made = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in made.items()}
        if self.options.get("score_mod"):
            made["score_mod"] = distance_penalty(library.namespace())
        return made

    def rounded(self, library: Backend) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
        """Inputs and options in NumPy with the rounding that the dtypes under test bring."""
        options = {
            name: x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x
            for name, x in ({"mask": self.mask} | self.options).items()
        }
        return tuple(to_numpy(x) for x in self.inputs(library)), options


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...]) -> Case:
    """Draw a call: shapes first, then every option with even odds to be absent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ndim = draw(st.integers(2, 5))
    batch = tuple(draw(_LEADING) for _ in range({2: 0, 3: 1, 4: 1, 5: 2}[ndim]))
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    queries, keys = draw(st.sampled_from([0, 1, 3, 5])), draw(st.sampled_from([0, 1, 5, 5, 6]))
    width, value_width = draw(st.sampled_from([1, 4])), draw(st.sampled_from([1, 4, 3]))

    def tensor(head_axis: int, length: int, size: int) -> np.ndarray:
        leading = tuple(n if draw(st.booleans()) else 1 for n in batch) if 0 not in batch else batch
        shape = (*leading, *((head_axis,) if ndim > 3 else ()), length, size)
        return rng.standard_normal(shape) * draw(st.sampled_from([1.0, 3.0]))

    query = tensor(heads, queries, width)
    key, value = tensor(kv_heads, keys, width), tensor(kv_heads, keys, value_width)
    batch = np.broadcast_shapes(*(x.shape[: len(batch)] for x in (query, key, value)))
    scores = (*batch, *((heads,) if ndim > 3 else ()), queries, keys)
    options = draw(_options(rng, batch, scores))
    return Case(query, key, value, draw(_masks(rng, scores)), options, draw(st.sampled_from(dtypes)))


@st.composite
def _options(draw: st.DrawFn, rng: np.random.Generator, batch: tuple[int, ...], scores: tuple[int, ...]) -> dict:
    """Draw all options but the mask."""
    queries, keys = scores[-2:]
    left, right = (st.none() | st.integers(0, 4) for _ in range(2))
    options = {
        "is_causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(0, 3) | st.tuples(left, right)),
        "query_lengths": draw(st.none() | _integers(rng, batch, 0, queries)),
        "key_lengths": draw(st.none() | _integers(rng, batch, 0, keys)),
        "scale": draw(st.sampled_from([None, 0.3, -1.0])),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "score_mod": distance_penalty(np) if draw(st.booleans()) else None,
        "bias": rng.standard_normal(draw(_broadcastable(scores))) if draw(st.booleans()) else None,
        "sinks": rng.standard_normal(scores[-3:-2] if len(scores) > 3 else ()) if draw(st.booleans()) else None,
        "query_offset": draw(st.none() | _integers(rng, batch, -2, 4)),
    }
    if draw(st.booleans()):
        options |= {"dropout_rate": 0.5, "rng": draw(st.integers(0, 2**64 - 1))}
    options["sinks"] = None if options["sinks"] is None else np.asarray(options["sinks"])
    is_relative = options["is_causal"] or options["window"] is not None
    if is_relative and queries != keys and options["query_offset"] is None:
        options["query_offset"] = draw(st.sampled_from([0, keys - queries]))
    return options


def _integers(rng: np.random.Generator, batch: tuple[int, ...], low: int, high: int) -> st.SearchStrategy[Any]:
    """A plain int, or an integer array of the batch shape."""
    arrays = st.builds(lambda: np.asarray(rng.integers(low, high + 1, batch), dtype=np.int32))
    return st.integers(low, high) | arrays


@st.composite
def _broadcastable(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Draw a shape that broadcasts to the given one: axes of length 1, leading axes left out."""
    start = draw(st.integers(0, len(shape)))
    return tuple(n if draw(st.booleans()) else 1 for n in shape[start:])


@st.composite
def _masks(draw: st.DrawFn, rng: np.random.Generator, scores: tuple[int, ...]) -> np.ndarray | None:
    """Draw a boolean or a float mask, at times with more axes than the scores."""
    kind = draw(st.sampled_from([None, "bool", "float"]))
    if kind is None:
        return None
    shape = draw(_broadcastable(scores))
    if len(shape) == len(scores) and draw(st.booleans()):
        shape = (1, *shape) if len(shape) > 3 else (*shape[:-2], 1, *shape[-2:])
    keep = np.asarray(rng.random(shape) < 0.7)
    return keep if kind == "bool" else np.where(keep, rng.standard_normal(shape), -np.inf)
