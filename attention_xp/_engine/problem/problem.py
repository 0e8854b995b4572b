"""One attention call with all its options, checked: nothing is checked again after `Problem.of`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

from attention_xp._backend.derivatives import scaled
from attention_xp._backend.dtypes import as_dtype, floating_dtype
from attention_xp._backend.libraries import common_namespace, is_cupy_namespace
from attention_xp._checks.arrays import check_inputs
from attention_xp._checks.numbers import check_name, check_score_mod, check_tile
from attention_xp._engine.problem.foreign import is_foreign, is_foreign_bias
from attention_xp._engine.problem.from_options import (
    array_options,
    bias_parts,
    key_places,
    lined_up,
    mask_parts,
    refuse_to_guess,
    rules_of,
)
from attention_xp._engine.problem.known_calls import KnownCall, fields_of, known_call, remember
from attention_xp._engine.problem.known_end import known_end, up_to
from attention_xp._engine.problem.options import AttentionOptions, complete
from attention_xp._random.draws import check_rate, check_rng, seed_words
from attention_xp._random.survivors import LARGEST_RATE
from attention_xp._scores.alignment import (
    aligned_head_ids,
    aligned_integers,
    aligned_item_ids,
    aligned_sinks,
    checked_scale,
    checked_softcap,
)
from attention_xp._scores.frame import Frame, frame_of
from attention_xp._scores.packing import Packing
from attention_xp._typing import Array, DType, Namespace, ScoreMod
from attention_xp.biases._bias import Bias, has_diagonals
from attention_xp.masks import Mask
from attention_xp.masks._packed_rule import PackedMask

__all__ = ["Problem"]

_T = TypeVar("_T")
_IMPLEMENTATIONS = ("auto", "dense", "tiled", "fused")


@dataclass(frozen=True, kw_only=True)
class Problem(Frame):
    """The arguments of a call, in the letters of the documentation; arrays are aligned with the scores.

    The query is ``(*batch, H, Sq, D)``, or without H. The result has its dtype, or `output_dtype`, whatever dtype the
    computation has.
    """

    key: Array  # (..., Hkv, Sk, D), without the keys behind an end that is known without reading a device
    value: Array  # (..., Hkv, Sk, Dv), likewise
    given_keys: int  # the number of keys of the call, before any were cut off
    group: int  # query heads per key/value head
    is_empty: bool  # whether an axis of the inputs has length 0
    scale: float | Array  # an array has no axes
    softcap: float | None
    score_mod: ScoreMod | None
    score_derivative: ScoreMod | None  # the derivative of score_mod, where it came with one
    addends: tuple[Any, ...]  # mask and bias: arrays, on torch in the dtype of the query, or a Bias
    narrow_addends: bool  # whether these came in the dtype of the query
    rules: tuple[Mask, ...]  # a pair is allowed where all of them allow it
    sinks: Array | None  # (..., H, 1, 1), or (..., 1, 1)
    query_lengths: int | Array | None
    dropout_rate: float
    seed: tuple[Any, Any] | None  # None: no dropout
    impl: str
    tile: tuple[int, int] | None
    output_dtype: DType | None = None  # where it is not that of the query
    stack: tuple[int, ...] | None = None  # batch items and heads in a tile of JAX's walker; None: chosen by `stack`

    # Fields that hold a number or an array; see `freeze`.
    _numbers: ClassVar = ("scale", "softcap", "query_offset", "key_offset", "query_lengths", "seed")
    answers: ClassVar[dict[Any, Any] | None] = None  # a known call has a dict of its own; see `once`

    @property
    def differentiated(self) -> tuple[Any, ...]:
        """The arrays, or Biases, of which there are gradients: query, key, value, addends and sinks, as in `Gradients.parts`."""
        return self.query, self.key, self.value, *self.addends, *(() if self.sinks is None else (self.sinks,))

    def with_differentiated(self, arrays: Sequence[Any]) -> Self:
        """Return the problem with other arrays in their place."""
        addends, sinks = arrays[3 : 3 + len(self.addends)], arrays[3 + len(self.addends) :]
        return replace(
            self,
            query=arrays[0],
            key=arrays[1],
            value=arrays[2],
            addends=tuple(addends),
            sinks=None if self.sinks is None else sinks[0],
        )

    def has_foreign_code(self) -> bool:
        """Whether the call brings functions of its own, or rules of its own classes."""
        return self.score_mod is not None or any(map(is_foreign, self.rules))

    @property
    def is_product(self) -> bool:
        """Whether the score is the scaled product and nothing more."""
        return self.softcap is None and self.score_mod is None and len(self.addends) == 0

    @property
    def may_gather(self) -> bool:
        """Whether only rules depend on the place of a key: where they allow all pairs, scattered keys may share a tile."""
        return self.score_mod is None and len(self.addends) == 0 and self.seed is None

    @property
    def has_bias_rule(self) -> bool:
        """Whether the bias is a rule."""
        return len(self.addends) > 0 and any(isinstance(addend, Bias) for addend in self.addends)

    @property
    def evaluates_pairs(self) -> bool:
        """Whether a bias is a rule that is evaluated for each pair, and not along diagonals."""
        return any(isinstance(addend, Bias) and not has_diagonals(addend, self) for addend in self.addends)

    @property
    def has_foreign_bias(self) -> bool:
        """Whether a bias is a rule of a class that is not ours, whose values may depend on more than its arrays."""
        return any(isinstance(addend, Bias) and is_foreign_bias(addend) for addend in self.addends)

    @property
    def has_one_offset(self) -> bool:
        """Whether the first rows of all batch items have the same position."""
        offset = self.query_offset
        return offset is None or isinstance(offset, int) or bool(offset.ndim == 0)

    @property
    def is_masked_alike(self) -> bool:
        """Whether all batch items and heads have the same mask."""
        stand_alike = self.key_positions is None or math.prod(self.key_positions.shape[:-1]) == 1
        return self.has_one_offset and stand_alike and all(math.prod(rule.lead) == 1 for rule in self.rules)

    def shift_invariant(self, rules: tuple[Mask, ...]) -> bool:
        """Whether what these rules exclude depends on the difference of row and key alone."""
        return self.has_one_offset and self.keys_count_up and all(rule.shift_invariant for rule in rules)

    @property
    def never_empty(self) -> bool:
        """Whether every row certainly attends a key, so that its weights have a positive sum."""
        return self.key.shape[-2] > 0 and len(self.rules) == len(self.addends) == 0 and self.score_mod is None

    @classmethod
    def of(
        cls,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | Mask | None,
        dropout_rate: float,
        options: AttentionOptions,
        *,
        packing: Packing | None = None,
        found: KnownCall | None = None,
    ) -> "Problem":
        """Check a call and align its arrays with the scores; `found` is what `known_call` has returned for it, if it was asked."""
        if packing is not None:
            found = None, None, None
        elif found is None:
            found = known_call(query, key, value, mask, dropout_rate, options)
        name, known, answers = found
        if known is not None:
            return cls._made_of(fields_of(known, answers, query, key, value, options.get("query_offset")))
        problem = cls._checked(query, key, value, mask, dropout_rate, options, packing)
        is_one_dtype = query.dtype == key.dtype == value.dtype  # autocast mixes them
        if name is not None and problem.query is query and isinstance(problem.scale, float) and is_one_dtype:
            # For arrays of CuPy the kernels depend on the layout as well, which is not part of the name.
            remember(name, {**vars(problem), "answers": None if is_cupy_namespace(problem.xp) else {}})
        return problem

    @classmethod
    def _made_of(cls, fields: dict[str, Any]) -> Self:
        problem = object.__new__(cls)  # setting the fields one by one takes as long as attention on small arrays
        object.__setattr__(problem, "__dict__", fields)
        return problem

    def with_keys(self, key: Any, value: Any) -> Self:
        """Return the same problem with other keys and values, which may lie in pages."""
        return self._made_of(vars(self) | {"key": key, "value": value})

    def of_step(self, query: Array, key: Array, value: Array) -> Self:
        """Return the same problem of other arrays, of the same kinds but for the number of keys, on which no option depends."""
        Sk = key.shape[-2]
        new = {"query": query, "key": key, "value": value, "Sk": Sk, "given_keys": Sk, "answers": None}
        return self._made_of(vars(self) | new)

    def of_arrays(self, query: Array, key: Array, value: Array) -> "Problem":
        """Return the same problem of other arrays, of the same shapes and dtypes."""
        return replace(self, query=_spread(self.xp, query, self.batch), key=key, value=value)

    def with_output_dtype(self, given: DType | str) -> "Problem":
        """Return the same problem with an output of a dtype, or of one of that name."""
        dtype = floating_dtype(self.xp, given, "output_dtype")
        return self if self.query.dtype == dtype else replace(self, output_dtype=dtype)

    @property
    def result_dtype(self) -> DType:
        """The dtype of the output."""
        return self.query.dtype if self.output_dtype is None else self.output_dtype

    @property
    def operands(self) -> tuple[Array, ...]:
        """Query, key and value, and a scale that is an array."""
        inputs = self.query, self.key, self.value
        return inputs if isinstance(self.scale, float) else (*inputs, self.scale)

    def with_scaled_query(self) -> "Problem":
        """Return the same problem with a plain float as scale: one that is an array is multiplied into the query."""
        if isinstance(self.scale, float):
            return self
        wide = as_dtype(self.xp, self.query, self.dtype)
        return replace(self, query=scaled(self.xp, wide, self.scale), scale=1.0)

    def once(self, question: Callable[..., _T], *more: Any) -> _T:
        """Return ``question(self, *more)``; for a known call, the answer is kept for later calls of the same kind.

        The answer may depend on types, sizes, dtypes, devices and plain options, on whether one of query, key and value requires
        gradients, and on nothing else: on no number in an array, no stride, and not on whether gradients are recorded.
        """
        answers = self.answers
        if answers is None:
            return question(self, *more)
        name = question, more
        if name not in answers:
            answers[name] = question(self, *more)
        return answers[name]  # type: ignore[no-any-return]

    @property
    def is_known(self) -> bool:
        """Whether the call is of a known kind, and therefore in no trace, transformation or forward mode."""
        return self.answers is not None

    @classmethod
    def _checked(
        cls,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | Mask | None,
        dropout_rate: float,
        options: AttentionOptions,
        packing: Packing | None,
    ) -> "Problem":
        o = complete(options)
        mask_array = None if isinstance(mask, Mask) else mask
        bias_array = None if isinstance(o["bias"], Bias) else o["bias"]
        xp = common_namespace(query=query, key=key, value=value, **array_options(mask_array, bias_array, o))
        batch, heads, kv_heads = check_inputs(xp, query, key, value)
        if isinstance(mask, Mask):
            mask.check(xp, query, batch, heads)
        if isinstance(o["bias"], Bias):
            o["bias"].check(xp, query, batch, heads)
        frame = frame_of(xp, query, batch, heads, key.shape[-2])
        offset = aligned_integers(frame, "query_offset", o["query_offset"])
        keys = key_places(frame, o)
        rows = aligned_integers(frame, "query_lengths", o["query_lengths"], low=0)
        columns = aligned_integers(frame, "key_lengths", o["key_lengths"], low=0)
        rules = rules_of(o, lined_up(frame, mask) if isinstance(mask, Mask) else None, rows, columns)
        if offset is None:
            refuse_to_guess(rules, query, key, is_moved=keys.is_given)
        narrow = all(a is None or a.dtype in (xp.bool, query.dtype) for a in (bias_array, mask_array))
        addends, exclusions = bias_parts(frame, o["bias"])
        if mask_array is not None:
            more, excluded = mask_parts(frame, mask_array)
            addends, exclusions = addends + more, exclusions + excluded
        rules += exclusions + keys.rules
        Sk = end = frame.Sk
        if packing is None and keys.positions is None:  # or else they are no columns
            end, rules = known_end(xp, rules, Sk, keys.offset or 0)
        addends = [a if isinstance(a, Bias) else up_to(end, Sk, a) for a in addends]
        if packing is not None:
            rules.append(PackedMask(packing.q_item, packing.k_item))
        score_mod, score_derivative = check_score_mod(o["score_mod"])
        rate = min(check_rate(dropout_rate, name="dropout_rate"), LARGEST_RATE)
        check_rng(o["rng"], xp)
        key, value = (up_to(end, Sk, a, axis=-2) for a in (key, value))
        return cls(
            xp=xp,
            query=_spread(xp, query, batch),
            key=key,
            value=value,
            given_keys=Sk,
            Sk=end,
            dtype=frame.dtype,
            batch=batch,
            heads=heads,
            group=heads // kv_heads if heads and kv_heads else 1,
            is_empty=0 in (*query.shape, *key.shape, *value.shape),
            scale=_default_scale(query) if o["scale"] is None else checked_scale(frame, o["scale"]),
            softcap=None if o["softcap"] is None else checked_softcap(frame, o["softcap"]),
            score_mod=score_mod,
            score_derivative=score_derivative,
            addends=tuple(addends),
            narrow_addends=narrow,
            rules=tuple(rules),
            sinks=None if o["sinks"] is None else aligned_sinks(frame, o["sinks"]),
            query_offset=offset,
            key_offset=keys.offset,
            key_positions=keys.positions,
            item_ids=aligned_item_ids(frame, o["item_ids"]),
            head_ids=aligned_head_ids(frame, o["head_ids"]),
            query_lengths=rows,
            dropout_rate=rate,
            impl=check_name("impl", o["impl"], _IMPLEMENTATIONS),
            tile=check_tile(o["tile"]),
            seed=seed_words(o["rng"], query, xp=xp) if rate else None,
            packing=packing,
        )


def _spread(xp: Namespace, query: Array, batch: tuple[int, ...]) -> Array:
    """Give the query the leading axes of the result, so that the scores have them as well."""
    if tuple(query.shape[: len(batch)]) == batch:
        return query
    return xp.broadcast_to(query, (*batch, *query.shape[len(batch) :]))


def _default_scale(query: Array) -> float:
    return 1.0 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
