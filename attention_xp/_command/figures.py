"""Numbers as people read them."""

__all__ = ["bytes_of", "duration", "milliseconds", "ratio", "size"]


def milliseconds(seconds: float) -> str:
    """Return so many milliseconds with about three digits."""
    return _three_digits(1e3 * seconds)


def ratio(number: float) -> str:
    """Return a ratio with two places."""
    return f"{number:.2f}"


def bytes_of(count: int | None) -> str:
    """Return bytes as MiB, nothing where they are not known."""
    return "" if count is None else _three_digits(count / 2**20)


def duration(seconds: float) -> str:
    """Return a time with its unit."""
    if seconds < 1.0:
        return f"{milliseconds(seconds)} ms"
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"


def size(count: float) -> str:
    """Return bytes with a unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{_three_digits(count) if unit != 'bytes' else int(count)} {unit}"
        count /= 1024
    return f"{_three_digits(count)} TiB"


def _three_digits(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"
