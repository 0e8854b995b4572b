"""Options that change nothing, and whether one looks at positions."""

from typing import Any

__all__ = ["looks_at_positions", "plain"]


def plain(how: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a call without a mask and a bias, but for what changes nothing.

    Where nothing looks at positions, `query_offset` is left out: without arrays among its options, a call of a known kind is
    not checked again.
    """
    given = {name: option for name, option in how.items() if option is not None}
    if not looks_at_positions(given):
        given.pop("query_offset", None)
        if given.get("is_causal") is False:
            del given["is_causal"]
        if type(given.get("dropout_rate")) is float:
            del given["dropout_rate"]
    return given


def looks_at_positions(how: dict[str, Any]) -> bool:
    """Whether options, but a mask and a bias, depend on where rows and keys stand."""
    if how.get("window") is not None or how.get("score_mod") is not None:
        return True
    return bool(how.get("is_causal") or how.get("dropout_rate"))
