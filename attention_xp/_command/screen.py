"""What the commands write: text that fits the screen, tables, and how far they are.

Tables are rich's on a terminal, where rich is installed. Without it, in pipes, and where ``NO_COLOR`` is set, they are plain
characters of ASCII. What is too wide for the screen is written as a list.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["say", "table", "tell_progress", "warn", "width"]

_GAP = 2  # spaces between columns


def width() -> int | None:
    """Return the columns of the screen, as ``COLUMNS`` or the terminal has them; ``None`` in a pipe."""
    told = os.environ.get("COLUMNS", "")
    if not sys.stdout.isatty() and not (told.isdecimal() and int(told) > 0):
        return None
    return shutil.get_terminal_size().columns


def say(text: str = "", indent: str = "") -> None:
    """Write a paragraph to standard output."""
    _write(sys.stdout, _wrapped(text, indent))


def warn(text: str) -> None:
    """Write a paragraph to standard error."""
    _write(sys.stderr, _wrapped(text, ""))


def _wrapped(text: str, indent: str) -> str:
    room = width()
    if room is None or len(text) <= room:
        return text
    # Commands and paths are not broken: they are there to be copied.
    return textwrap.fill(text, room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _write(stream: Any, text: str) -> None:
    encoding = stream.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, bad: Iterable[int] = ()) -> None:
    """Write a table under a title; the first column is text and the others numbers, and some rows, by number, are bad news."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    room = width()
    if room is not None and sum(widths) + _GAP * (len(widths) - 1) > room:
        _list(title, columns, cells)
    elif not _is_styled() or not _rich(title, columns, cells, set(bad)):
        _plain(title, columns, cells, widths)


def _is_styled() -> bool:
    """Whether whoever reads wants colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _rich(title: str, columns: Sequence[str], cells: list[list[str]], bad: set[int]) -> bool:
    """Write the table with rich; return whether it is installed."""
    try:
        from rich import box  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
    except ImportError:
        return False
    drawn = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    drawn.show_edge = False
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="right" if i else "left", no_wrap=True)
    for i, row in enumerate(cells):
        drawn.add_row(*row, style="bold red" if i in bad else "")
    # Names of devices are text: neither brackets nor colons in them mean anything.
    Console(width=width(), markup=False, emoji=False, highlight=False).print(drawn)
    return True


def _plain(title: str, columns: Sequence[str], cells: list[list[str]], widths: list[int]) -> None:
    rule = ["-" * n for n in widths]
    say(title)
    for line in (list(columns), rule, *cells):
        first, *others = (
            cell.rjust(n) if i else cell.ljust(n) for i, (cell, n) in enumerate(zip(line, widths, strict=True))
        )
        _write(sys.stdout, (" " * _GAP).join([first, *others]).rstrip())


def _list(title: str, columns: Sequence[str], cells: list[list[str]]) -> None:
    """Write each row as a paragraph with a line for each column."""
    room = max(map(len, columns[1:]))
    say(title)
    for head, *others in cells:
        say(head)
        for name, cell in zip(columns[1:], others, strict=True):
            if cell:
                indent = " " * (room + 2 * _GAP)
                say(f"{' ' * _GAP}{name.ljust(room)}{' ' * _GAP}{cell}", indent)


def tell_progress(done: int, total: int, what: str) -> None:
    """Say on standard error how far the work is: on one line where that is a terminal."""
    text = f"[{done}/{total}] {what}"
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        _write(sys.stderr, text)
        return
    room = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r{text[:room].ljust(room)}")
    if done == total:
        sys.stderr.write("\n")
    sys.stderr.flush()
