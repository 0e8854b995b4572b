"""Random calls of attention: any subset of the options, at any broadcastable shape and any size of a tile."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from attention_xp import flash_attention
from tests._backends import Backend, to_numpy
from tests.biases._cases import Case as BiasRule, drawn as drawn_biases
from tests.masks._cases import Case as Rule
from tests.rule_strategies import rules
from tests.score_mods import distance_penalty

_LEADING = st.sampled_from([1, 1, 2, 2, 2, 0])
# Nothing, one, prime lengths, and one more than a tile or two.
_QUERIES = st.sampled_from([0, 1, 3, 4, 5, 7])
_KEYS = st.sampled_from([0, 1, 2, 5, 6, 7, 11, 13])
_TILES = st.sampled_from([None, (1, 1), (3, 5), (2, 4), (4, 1), (64, 64)])


@dataclass(frozen=True)
class Case:
    """One call of attention, in NumPy: the inputs, the mask and the other options."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    mask: np.ndarray | Rule | None
    options: dict[str, Any]
    dtype: str

    def inputs(self, library: Backend) -> tuple[Any, Any, Any]:
        """Query, key and value as arrays under test."""
        return tuple(library.array(x, self.dtype) for x in (self.query, self.key, self.value))

    def keywords(self, library: Backend) -> dict[str, Any]:
        """The mask and the options as keyword arguments under test."""
        made = {"mask": self.mask} | self.options
        made = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in made.items()}
        if isinstance(self.mask, Rule):
            made["mask"] = self.mask.build(library.array)
        if isinstance(self.options["bias"], BiasRule):
            made["bias"] = self.options["bias"].build(library.array)
        if self.options.get("score_mod"):
            made["score_mod"] = distance_penalty(library.namespace())
        return made

    def rounded(self, library: Backend) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
        """Inputs and options in NumPy with the rounding that the dtypes under test bring."""
        options = {
            name: x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x
            for name, x in ({"mask": self.mask} | self.options).items()
        }
        if isinstance(self.mask, Rule):
            options["mask"] = self.table(self.mask).astype(bool)
        if isinstance(self.options["bias"], BiasRule):
            options["bias"] = self.table(self.options["bias"])
        return tuple(to_numpy(x) for x in self.inputs(library)), options

    def by_guest(self, library: Backend) -> Any:
        """The output of the kernel that the library brings, or the reason why it gives none."""
        try:
            return flash_attention(*self.inputs(library), **self.keywords(library), impl="fused")
        except ValueError as error:
            if not str(error).startswith("impl='fused' cannot compute this call: "):
                raise
            return str(error)

    def scores(self) -> tuple[int, ...]:
        """The shape ``(..., H, Sq, Sk)``, without heads where there are none."""
        return _scores(self.query, self.key, self.value)

    def table(self, rule: Rule | BiasRule) -> np.ndarray:
        """What a rule says of every pair, in the shape of the scores."""
        *lead, queries, keys = self.scores()
        batch, heads = (tuple(lead[:-1]), lead[-1]) if self.query.ndim > 3 else (tuple(lead), 1)
        offset = self.options["query_offset"]
        offsets = np.broadcast_to(0 if offset is None else offset, batch).ravel()
        tables = [
            rule.table(b + 1, heads, range(o, o + queries), range(keys))[b] for b, o in enumerate(offsets.tolist())
        ]
        return np.asarray(tables).reshape(self.scores())


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...], *, common: bool = False, step: int = 1) -> Case:
    """Draw a call: shapes first, then every option with even odds to be absent.

    With `common`, only options are drawn that the kernels of other libraries have as well. Widths are multiples of
    `step`.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ndim = draw(st.integers(2, 5))
    batch = tuple(draw(_LEADING.filter(bool) if common else _LEADING) for _ in range({2: 0, 3: 1, 4: 1, 5: 2}[ndim]))
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    queries, keys = (draw(sizes.filter(bool) if common else sizes) for sizes in (_QUERIES, _KEYS))
    width, value_width = (step * draw(st.sampled_from(sizes)) for sizes in ([1, 4], [1, 4, 3]))

    def tensor(head_axis: int, length: int, size: int) -> np.ndarray:
        leading = tuple(n if draw(st.booleans()) else 1 for n in batch) if 0 not in batch else batch
        shape = (*leading, *((head_axis,) if ndim > 3 else ()), length, size)
        return rng.standard_normal(shape) * draw(st.sampled_from([1.0, 3.0]))

    query = tensor(heads, queries, width)
    key, value = tensor(kv_heads, keys, width), tensor(kv_heads, keys, value_width)
    scores = _scores(query, key, value)
    batch, heads = scores[: len(batch)], heads if ndim > 3 else 1
    options = draw(_options(rng, batch, scores, common=common))
    mask = draw(_masks(rng, scores) | (rules(rng, batch, heads, ("length",)) if common else rules(rng, batch, heads)))
    if isinstance(mask, Rule) and queries != keys and options["query_offset"] is None:
        options["query_offset"] = draw(st.sampled_from([0, keys - queries]))
    return Case(query, key, value, mask, options, draw(st.sampled_from(dtypes)))


def _scores(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[int, ...]:
    """The shape of the scores."""
    has_heads = query.ndim > 3
    batch = np.broadcast_shapes(*(x.shape[: x.ndim - 2 - has_heads] for x in (query, key, value)))
    return (*batch, *query.shape[-3:-2][:has_heads], query.shape[-2], key.shape[-2])


@st.composite
def _options(
    draw: st.DrawFn, rng: np.random.Generator, batch: tuple[int, ...], scores: tuple[int, ...], *, common: bool
) -> dict:
    """Draw all options but the mask."""
    queries, keys = scores[-2:]
    left, right = (st.none() | st.integers(0, 4) for _ in range(2))
    options = {
        "is_causal": draw(st.booleans()) and not (common and draw(st.booleans())),
        "query_lengths": draw(st.none() | _integers(rng, batch, 0, queries)),
        "key_lengths": draw(st.none() | _integers(rng, batch, 0, keys)),
        "scale": draw(st.sampled_from([None, 0.3, -1.0])),
        "bias": draw(_biases(rng, scores)) if draw(st.booleans()) and not (common and draw(st.booleans())) else None,
        "query_offset": draw(st.sampled_from([None, 0]) if common else st.none() | _integers(rng, batch, -2, 4)),
        "tile": draw(_TILES),
    }
    if not common:
        options |= {
            "window": draw(st.none() | st.integers(0, 3) | st.tuples(left, right)),
            "softcap": draw(st.sampled_from([None, 2.0])),
            "score_mod": distance_penalty(np) if draw(st.booleans()) else None,
            "sinks": rng.standard_normal(scores[-3:-2] if len(scores) > 3 else ()) if draw(st.booleans()) else None,
        }
        if draw(st.integers(0, 3)) == 0:
            options["bias"] = draw(drawn_biases(rng, scores[-3] if len(scores) > 3 else 1))
        options["sinks"] = None if options["sinks"] is None else np.asarray(options["sinks"])
        if draw(st.booleans()):
            options |= {"dropout_rate": 0.5, "rng": draw(st.integers(0, 2**64 - 1))}
    is_relative = options["is_causal"] or options.get("window") is not None
    if is_relative and queries != keys and options["query_offset"] is None:
        options["query_offset"] = 0 if common else draw(st.sampled_from([0, keys - queries]))
    return options


@st.composite
def _biases(draw: st.DrawFn, rng: np.random.Generator, scores: tuple[int, ...]) -> np.ndarray:
    """Draw a bias, at times one that excludes as a mask does."""
    bias = np.asarray(rng.standard_normal(draw(_broadcastable(scores))))
    return (
        np.where(rng.random(bias.shape) < 0.2, -np.inf, bias) if draw(st.sampled_from([False] * 4 + [True])) else bias
    )


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
