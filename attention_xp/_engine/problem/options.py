"""The options that every attention function shares: declared, defaulted and documented once."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypedDict, TypeVar, get_args

from attention_xp._public_types import Array
from attention_xp._suggestions import no_such_argument
from attention_xp._typing import ScoreMod, ScoreModAndDerivative
from attention_xp.biases._bias import Bias

__all__ = [
    "DEFAULTS",
    "PLAIN",
    "AttentionOptions",
    "CacheOptions",
    "PackedOptions",
    "ScoreOptions",
    "check_options",
    "complete",
    "with_options",
]


class _KeyPlaces(TypedDict, total=False):
    """Keyword arguments that say where keys stand."""

    key_offset: int | Array | None
    key_positions: Array | None


class _SharedScoreOptions(TypedDict, total=False):
    """Keyword arguments that the scores depend on, for packed sequences and for all others."""

    is_causal: bool
    window: int | tuple[int | None, int | None] | None
    scale: float | Array | None
    softcap: float | None
    score_mod: ScoreMod | ScoreModAndDerivative | None
    item_ids: int | Array | None
    head_ids: int | Array | None


class _SharedOptions(_SharedScoreOptions, total=False):
    """Keyword arguments that mean the same to packed sequences and to all others."""

    sinks: Array | None
    rng: Any
    impl: Literal["auto", "dense", "tiled", "fused"]
    tile: tuple[int, int] | None


class PackedOptions(_SharedOptions, _KeyPlaces, total=False):
    """Keyword arguments of attention in packed sequences, which say nothing of lengths."""

    bias: Bias | None
    query_offset: int | Array | None


class _ScoreOptions(_SharedScoreOptions, total=False):
    """Keyword arguments that the scores depend on, wherever the keys stand."""

    bias: Array | Bias | None
    query_offset: int | Array | None
    query_lengths: int | Array | None
    key_lengths: int | Array | None


class ScoreOptions(_ScoreOptions, _KeyPlaces, total=False):
    """Keyword arguments that the scores depend on."""


class CacheOptions(_SharedOptions, _ScoreOptions, total=False):
    """Keyword arguments of every attention function whose keys are in a cache, which says where they stand."""


class AttentionOptions(_SharedOptions, ScoreOptions, total=False):
    """Keyword arguments of every attention function."""


DEFAULTS: AttentionOptions = {
    "bias": None,
    "is_causal": False,
    "window": None,
    "query_offset": None,
    "key_offset": None,
    "key_positions": None,
    "item_ids": None,
    "head_ids": None,
    "query_lengths": None,
    "key_lengths": None,
    "scale": None,
    "softcap": None,
    "score_mod": None,
    "sinks": None,
    "rng": None,
    "impl": "auto",
    "tile": None,
}

PLAIN = frozenset({"is_causal", "window", "query_offset", "scale", "softcap", "impl"})
"""The options that may be plain values which seldom change from call to call; an offset may, where it is an int."""

_DOCUMENTATION = """\
bias : array or Bias, optional
    Floating array that is added to the scores; broadcasts to ``(..., H, Sq, Sk)``. Or a rule from
    ``attention_xp.biases``, which is never materialised by ``"tiled"``.
is_causal : bool, default: False
    A query at position ``p`` attends keys at positions ``<= p`` only.
window : int or (int or None, int or None), optional
    ``(left, right)``: a query at position ``p`` attends keys in ``[p - left, p + right]``,
    both ends included; ``None`` leaves a side open and ``w`` means ``(w, w)``.
query_offset : int or integer array of the batch shape, optional
    Position of the first query; keys start at position 0 unless they are given others. Required with `is_causal` and
    `window` where ``Sq != Sk``: ``0`` aligns top-left, ``Sk - Sq`` bottom-right.
key_offset : int or integer array of the batch shape, optional
    Position of the first key, 0 by default: a piece of the keys gives what it contributes to the whole. Where it is
    given, so must be `query_offset` with `is_causal` and `window`.
key_positions : integer array, optional
    Positions of the keys in any order, ``(Sk,)`` or batch shape + ``(Sk,)``, in place of `key_offset`. A negative
    position is that of an empty slot, which is never attended.
item_ids, head_ids : int or integer array, optional
    Of the batch shape, and ``(H,)``, or ``()`` without a heads axis: the ``b`` and ``h`` that functions, rules and
    dropout see. By default they count from 0.
query_lengths, key_lengths : int or integer array of the batch shape, optional
    Keys at positions from ``key_lengths[b]`` on are never attended; output rows from
    ``query_lengths[b]`` on, counted in this call, are zero.
scale : float or array, optional
    Factor of the scores: a number, or a floating array ``()``, which may need a gradient, such as a learned
    temperature. Default: ``1 / sqrt(D)``.
softcap : float, optional
    Replaces a score ``s`` by ``softcap * tanh(s / softcap)``.
score_mod : callable or pair of callables, optional
    ``score_mod(score, b, h, q_idx, kv_idx) -> score`` on whole tiles. The index arguments are
    integer arrays that broadcast against ``score``; ``b`` is the flat index over the
    leading axes. A pair ``(score_mod, derivative)`` brings the derivative by ``score``, a function
    of the same arguments, to `attention_vjp` where the library cannot differentiate by itself.
sinks : array, optional
    ``(H,)``, or ``()`` without a heads axis: one more logit per head that takes part in the
    softmax and has no value.
rng : int, random generator or JAX key, optional
    Source of the dropout: a seed (same numbers on every backend), or a generator of the
    library of `query`. Default: fresh entropy, on torch from its global generator; required with JAX. The rate is rounded
    to the nearest multiple of 1/65536 below 1.
impl : {"auto", "dense", "tiled", "fused"}, default: "auto"
    Which kernel computes; ``ValueError`` with the reason where it cannot.
tile : (int, int), optional
    Query rows and key columns of a tile of ``"tiled"``. Default: chosen."""

_F = TypeVar("_F", bound=Callable[..., Any])


def with_options(function: _F) -> _F:
    """Show the options that a function takes in its signature and, at ``{options}``, in its docstring, unless it tells of them.

    They are those of the `TypedDict` that its ``**options`` are annotated with.
    """
    signature = inspect.signature(function)
    kinds = inspect.Parameter
    own = [p for p in signature.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    types = get_args(signature.parameters["options"].annotation)[0].__annotations__
    taken = [
        kinds(name, kinds.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in DEFAULTS.items()
        if name in types
    ]
    function.__signature__ = signature.replace(parameters=[*own, *taken])  # type: ignore[attr-defined]
    if function.__doc__:  # absent under `python -OO`
        doc = inspect.cleandoc(function.__doc__)
        function.__doc__ = doc.replace(
            "{options}", _documentation([name for name in types if f"\n{name} :" not in doc])
        )
    return function


def _documentation(taken: Collection[str]) -> str:
    """Return the paragraphs about some options; a paragraph may be about two options."""
    paragraphs = re.split(r"\n(?=\w)", _DOCUMENTATION)
    return "\n".join(text for text in paragraphs if set(text.partition(" :")[0].split(", ")) & set(taken))


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any], known: Mapping[str, Any] = DEFAULTS
) -> None:
    """Refuse an unknown option; the error lists what the function takes, and what may have been meant."""
    if not options.keys() <= known.keys():
        taken = inspect.signature(function).parameters
        raise TypeError(no_such_argument(function.__name__, options, taken))


def complete(options: AttentionOptions) -> AttentionOptions:
    """Fill in the defaults. Public functions refuse unknown options earlier, with an error about their own arguments."""
    if not options.keys() <= DEFAULTS.keys():
        raise TypeError(no_such_argument("attention", options, DEFAULTS))
    return {**DEFAULTS, **options}
