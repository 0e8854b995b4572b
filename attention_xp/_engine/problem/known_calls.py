"""Known calls: a call without options that are arrays, as most are, is checked once for all calls of the same kind.

On small arrays the checks would take longer than attention itself. Calls that differ in the number of keys alone, or in where
the first query stands, are of one kind: decoding goes on by a key, and a position, from step to step.
"""

from typing import Any

from attention_xp._backend.libraries import is_tensor
from attention_xp._backend.modes import is_plain
from attention_xp._engine.problem.options import PLAIN, AttentionOptions
from attention_xp._typing import Array

__all__ = ["KnownCall", "fields_of", "known_call", "remember"]

_Fields = dict[str, Any]
KnownCall = tuple[tuple[Any, ...] | None, _Fields | None, dict[Any, Any] | None]  # what `known_call` returns

_KNOWN: dict[Any, tuple[Any, _Fields | None]] = {}  # the layout and the fields of plain calls that passed the checks
_UNKNOWN: tuple[Any, _Fields | None] = (None, None)
_NOT_PLAIN: KnownCall = (None, None, None)
_MOST = 512
_FAR = 2**29  # positions beyond are refused


def known_call(
    query: Array, key: Array, value: Array, mask: Any, dropout_rate: float, options: AttentionOptions
) -> KnownCall:
    """Return the name of a plain call, which holds what its fields depend on; its fields and the answers that are kept.

    ``None`` for a call with more arrays, or within a trace, where the fields depend on more than the arguments, and for one
    in which the number of keys or the offset, which the name does not hold, might be refused.
    """
    if mask is not None or type(dropout_rate) is not float or dropout_rate or not options.keys() <= PLAIN:
        return _NOT_PLAIN
    if not is_plain():
        return _NOT_PLAIN
    try:
        offset, q, k, v = options.get("query_offset"), query.shape, key.shape, value.shape
        Sk = k[-2]
        if v[-2] != Sk or not Sk:
            return _NOT_PLAIN
        if offset is not None:
            if type(offset) is not int or not -_FAR <= offset <= _FAR:
                return _NOT_PLAIN
            options = {**options, "query_offset": 0}
        elif Sk != q[-2] and options and _may_compare_positions(options):
            return _NOT_PLAIN
        # Each line is one that small arrays wait for: nothing is unpacked or cut without need.
        kinds = (type(query), query.dtype, query.device, type(key), key.dtype, key.device)
        # As many keys as queries are no step of decoding; torch takes its time to cut a shape.
        sizes = (q, k, v) if Sk == q[-2] and offset is None else (q, k[:-2], k[-1], v[:-2], v[-1])
        may_move = is_tensor(query) and (query.requires_grad or key.requires_grad or value.requires_grad)
        given = (*options.items(), *map(_kind, options.values())) if options else None
        name = (kinds, type(value), value.dtype, value.device, sizes, may_move, given)
        layout, fields = _KNOWN.get(name, _UNKNOWN)
        # Only torch has layouts.
        if layout is not None and not (query.layout is layout and key.layout is layout and value.layout is layout):
            return _NOT_PLAIN
    # Not an array, an array that JAX traces, a symbolic size, which cannot be compared, or a nested tensor, without sizes.
    except (AttributeError, IndexError, TypeError, RuntimeError):
        return _NOT_PLAIN
    if fields is None:
        return name, None, None
    return name, fields, _answers(fields["answers"], (Sk, offset))


def fields_of(known: _Fields, answers: Any, query: Array, key: Array, value: Array, offset: Any) -> _Fields:
    """Return the fields of a call from those of its kind: calls of one kind differ in arrays and places."""
    arrays, Sk = {"query": query, "key": key, "value": value}, key.shape[-2]
    return {**known, **arrays, "Sk": Sk, "given_keys": Sk, "query_offset": offset, "answers": answers}


def remember(name: tuple[Any, ...], fields: _Fields) -> None:
    """Keep the fields of a call, without its arrays."""
    if len(_KNOWN) >= _MOST:
        _KNOWN.clear()
    layout = fields["query"].layout if is_tensor(fields["query"]) else None
    _KNOWN[name] = layout, {**fields, "query": None, "key": None, "value": None}


def _may_compare_positions(options: AttentionOptions) -> bool:
    return options.get("is_causal", False) is not False or options.get("window") is not None


def _kind(option: Any) -> Any:
    """Return the type of an option, or those of its parts: True is no 1."""
    return tuple(map(type, option)) if type(option) is tuple else type(option)


def _answers(of_all: dict[Any, dict[Any, Any]] | None, place: tuple[int, int | None]) -> dict[Any, Any] | None:
    """Return the answers that are kept for a number of keys and an offset, on which they may depend."""
    if of_all is None:
        return None
    answers = of_all.get(place)
    if answers is None:
        if len(of_all) >= _MOST:
            of_all.clear()
        answers = of_all[place] = {}
    return answers
