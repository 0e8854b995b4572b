"""Complaints about plain Python values: numbers, flags, names and callables."""

import sys
from collections.abc import Collection
from numbers import Real
from operator import index
from typing import Any

from attention_xp._backend.libraries import described

__all__ = [
    "check_count",
    "check_flag",
    "check_int",
    "check_name",
    "check_number",
    "check_position",
    "check_positive",
    "check_score_mod",
    "check_tile",
    "check_window",
]


def check_flag(name: str, given: Any) -> bool:
    """Return a bool, Python's or NumPy's; what is merely true in spirit is refused."""
    kind = type(given)
    if not isinstance(given, bool) and (kind.__module__, kind.__name__.rstrip("_")) != ("numpy", "bool"):
        raise TypeError(f"{name} must be a bool, got {described(name, given)}")
    return bool(given)


def check_number(name: str, number: Any) -> float:
    """Return a finite real number as a float."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a real number, got {described(name, number)}")
    kind: Any = type(number)
    if kind.__module__ == "numpy":
        number = kind.item(number)  # narrow floats hold no bound of Python's
    # A comparison, which torch traces where the number is a symbol; Real does not promise it to type checkers.
    if not abs(number) <= sys.float_info.max:  # a larger int is no float
        raise ValueError(f"{name} must be finite, got {number}")
    return float(number)


def check_positive(name: str, number: Any) -> float:
    """Return a finite real number above zero as a float."""
    positive = check_number(name, number)
    if positive <= 0.0:
        raise ValueError(f"{name} must be positive, got {number}")
    return positive


def check_int(name: str, given: Any) -> int:
    """Return a plain int."""
    if not _is_int(given):
        raise TypeError(f"{name} must be an int, got {described(name, given)}")
    return given if isinstance(given, int) else index(given)


def check_count(name: str, given: Any, *, low: int = 1) -> int:
    """Return a size or count as a plain int."""
    count = check_int(name, given)
    if count < low:
        raise ValueError(f"{name} must be at least {low}, got {count}")
    return count


def check_position(name: str, given: Any, *, low: int = -(2**29)) -> int:
    """Return a position or length as a plain int that is far from where sums of two positions overflow int32."""
    position = check_int(name, given)
    if not low <= position <= 2**29:
        raise ValueError(f"{name} must lie between {'-2**29' if low else 0} and 2**29, got {position}")
    return position


def check_window(window: Any) -> tuple[int | None, int | None]:
    """Return ``(left, right)``; an int stands for both."""
    sides = window if isinstance(window, tuple | list) else (window, window)
    wrong = [side for side in sides if side is not None and not _is_int(side)]
    if wrong:
        raise TypeError(
            f"window must be None, an int or a pair (left, right) of int or None, got {described('window', wrong[0])}"
        )
    if len(sides) != 2:
        raise ValueError(f"window must have two sides: expected an int or a pair (left, right), got {window!r}")
    left, right = (side if side is None else index(side) for side in sides)
    if (left or 0) < 0 or (right or 0) < 0:
        raise ValueError(f"window bounds must not be negative, got window {window!r}")
    return left, right


def check_tile(tile: Any) -> tuple[int, int] | None:
    """Return ``(query rows, key columns)``, or ``None`` where the choice is ours."""
    if tile is None:
        return None
    if not isinstance(tile, tuple | list) or len(tile) != 2:
        raise TypeError(f"tile must be a pair of ints (query rows, key columns), got {tile!r}")
    wrong = [n for n in tile if not _is_int(n)]
    if wrong:
        raise TypeError(f"tile must be a pair of ints (query rows, key columns), got {described('tile', wrong[0])}")
    rows, columns = (index(n) for n in tile)
    if rows < 1 or columns < 1:
        raise ValueError(f"tile must be positive in both directions, got {tile!r}")
    return rows, columns


def check_score_mod(given: Any) -> tuple[Any, Any]:
    """Return a function of the scores and its derivative, each a callable or ``None``."""
    pair = given if isinstance(given, tuple) else (given, None)
    if len(pair) != 2 or not all(f is None or callable(f) for f in pair) or (pair[0] is None and pair[1] is not None):
        raise TypeError(
            "score_mod must be callable as f(score, b, h, q_idx, kv_idx), or a pair of that and its derivative, "
            f"got {type(given).__name__}"
        )
    return pair


def check_name(name: str, given: Any, known: Collection[str]) -> str:
    """Return one of some names."""
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a str, got {type(given).__name__}")
    if given not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}")
    return given


def _is_int(given: Any) -> bool:
    # int first: a size that torch traces is one, but answers no further question.
    return not isinstance(given, bool) and (isinstance(given, int) or _is_index(given))


def _is_index(given: Any) -> bool:
    try:
        index(given)
    except TypeError:  # also of arrays, which all have an `__index__`
        return False
    return True
