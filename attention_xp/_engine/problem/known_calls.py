"""Known calls: a call without options that are arrays, as most are, is checked once for all calls of the same kind.

On small arrays the checks would take longer than attention itself.
"""

from typing import Any

from attention_xp._backend.libraries import is_tensor
from attention_xp._backend.modes import is_plain
from attention_xp._engine.problem.options import PLAIN, AttentionOptions
from attention_xp._typing import Array

__all__ = ["known_call", "remember"]

_Fields = dict[str, Any]

_KNOWN: dict[Any, tuple[Any, _Fields | None]] = {}  # the layout and the fields of plain calls that passed the checks
_UNKNOWN: tuple[Any, _Fields | None] = (None, None)
_MOST = 512


def known_call(
    query: Array, key: Array, value: Array, mask: Any, dropout_rate: float, options: AttentionOptions
) -> tuple[tuple[Any, ...] | None, _Fields | None]:
    """Return the name of a plain call, which holds all that its fields depend on, and the fields where they are known.

    ``None`` for a call with more arrays, or within a trace, where the fields depend on more than the arguments.
    """
    if mask is not None or type(dropout_rate) is not float or dropout_rate or not options.keys() <= PLAIN:
        return None, None
    if not is_plain():
        return None, None
    try:
        name = (
            *(type(query), query.shape, query.dtype, query.device),
            *(type(key), key.shape, key.dtype, key.device),
            *(type(value), value.shape, value.dtype, value.device),
            *options.items(),
            *map(type, options.values()),  # True is no 1
        )
        layout, fields = _KNOWN.get(name, _UNKNOWN)
        # Only torch has layouts.
        if layout is None or (query.layout is layout and key.layout is layout and value.layout is layout):
            return name, fields
        return None, None
    # Not an array, an array that JAX traces, a symbolic size, which cannot be compared, or a nested tensor, without sizes.
    except (AttributeError, TypeError, RuntimeError):
        return None, None


def remember(name: tuple[Any, ...], fields: _Fields) -> None:
    """Keep the fields of a call, without its arrays."""
    if len(_KNOWN) >= _MOST:
        _KNOWN.clear()
    layout = fields["query"].layout if is_tensor(fields["query"]) else None
    _KNOWN[name] = layout, {**fields, "query": None, "key": None, "value": None}
