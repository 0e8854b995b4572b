"""Tokens as pictures show them: every character is visible, and none does anything."""

from collections.abc import Sequence
from typing import Any

__all__ = ["check_tokens", "shown"]

_JOINERS = "\u200c\u200d"  # they shape the letters and emoji between which they stand, and have no shape of their own
_OPEN_BOX = "\u2423"


def check_tokens(name: str, tokens: Any, count: int, axis: str) -> list[str]:
    """Return tokens as a list, of which there is one for each query or key."""
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
        raise TypeError(f"{name} must be a sequence of str, got {type(tokens).__name__}")
    for i, token in enumerate(tokens):
        if not isinstance(token, str):
            raise TypeError(f"{name} must be a sequence of str, got {type(token).__name__} as {name}[{i}]")
    if len(tokens) != count:
        raise ValueError(f"{name} must have one for each of the {count} {axis}, got {len(tokens)}")
    return list(tokens)


def shown(token: str) -> str:
    """Return a token with all its characters visible: those that cannot be seen as Python's strings are written.

    Spaces at its ends are shown as open boxes; an empty token is named.
    """
    if not token:
        return "(empty)"
    inner = token.strip(" ")
    start = len(token) - len(token.lstrip(" "))
    end = len(token) - len(inner) - start
    return _OPEN_BOX * start + "".join(map(_visible, inner)) + _OPEN_BOX * end


def _visible(character: str) -> str:
    return character if character.isprintable() or character in _JOINERS else repr(character)[1:-1]
