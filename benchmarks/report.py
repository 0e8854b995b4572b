"""Rows as a table: in the terminal, and as a section of the page of docs/benchmarks for machines like this one."""

import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.comparison import Row

__all__ = [
    "COLUMNS",
    "cells",
    "environment",
    "file_name",
    "grid",
    "machine",
    "markdown",
    "markdown_grid",
    "table",
    "write_section",
]

COLUMNS = ["case", "ours", "theirs", "ratio", "processor", "target", "met", "ours ms", "theirs ms"]
TEXTS = {"case", "ours", "theirs", "fastest", "auto", "call", "what"}  # columns that hold no numbers
PAGES = Path(__file__).parents[1] / "docs" / "benchmarks"
MAKERS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
INTRODUCTION = "How these are measured, and what they say, is on the page of the [benchmarks](../benchmarks.md)."
LAST = """\
## Read next

[Performance](../performance.md) has the short of it, and what to do for speed.
"""
PACKAGES = ["numpy", "torch", "jax", "cupy", "onnxruntime", "keras"]


def cells(row: Row) -> list[str]:
    """Return the texts of a row, one for each column."""
    name = [row.case, row.ours, row.theirs]
    if row.problem:
        return [*name, row.problem, *[""] * (len(COLUMNS) - 4)]
    target = None if row.group else row.target
    met = {None: "", True: "yes", False: "no"}[row.met]
    times = [_number(1e3 * t, "", 3) for t in row.seconds] if row.seconds else ["", ""]
    return [*name, _number(row.value, row.unit), _number(row.cpu_ratio), _number(target, row.unit), met, *times]


def _number(value: float | None, unit: str = "", digits: int = 2) -> str:
    if value is None:
        return ""
    places = digits if abs(value) < 10 else 1
    return f"{value:.{places}f} {unit}".strip()


def grid(name: str, columns: list[str]) -> Table:
    """Return an empty table for the terminal."""
    result = Table(title=name, title_justify="left")
    for column in columns:
        result.add_column(column, justify="left" if column in TEXTS else "right", overflow="fold")
    return result


def table(name: str, rows: Iterable[Row]) -> Table:
    """Return the table of a suite for the terminal."""
    result = grid(name, COLUMNS)
    for row in rows:
        style = "bold red" if row.met is False or row.failed else "bold" if row.met else "dim" if row.problem else ""
        result.add_row(*cells(row), style=style)
    return result


def markdown(rows: Iterable[Row]) -> str:
    """Return the table of a suite as Markdown."""
    return markdown_grid(COLUMNS, map(cells, rows))


def markdown_grid(columns: list[str], rows: Iterable[list[str]]) -> str:
    """Return any table as Markdown."""
    lines = [columns, ["---" if column in TEXTS else "---:" for column in columns], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def environment() -> str:
    """Return one line about versions and machine."""
    installed = packages_distributions()
    versions = ", ".join(f"{name} {version(installed[name][0])}" for name in PACKAGES if name in installed)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    day = datetime.now(UTC).date()
    return f"{day}; {_processor()} with {', '.join(_instructions()[-1:]) or 'no vector instructions'}, {cores} cores; Python {platform.python_version()}, {versions}."


def machine() -> str:
    """Return the maker and the instructions of the processor, such as ``"Intel, AVX2"``: with these, the figures differ most."""
    vendor = _of_processor("vendor_id")
    maker = platform.machine() if vendor is None else MAKERS.get(vendor, vendor)
    found = _instructions()
    level = "AVX-512" if "X86_V4" in found else "AVX2" if "X86_V3" in found else ""
    return ", ".join(filter(None, (maker, level)))


def file_name(machine: str) -> str:
    """Return the name of a machine for files, such as ``"intel_avx2"``."""
    return re.sub(r"\W+", "_", machine.lower().replace("-", ""))


def _processor() -> str:
    return _of_processor("model name") or platform.processor() or platform.machine()


def _of_processor(field: str) -> str | None:
    """Return what Linux says of the first processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(rf"^{field}\s*: (.*)", info.read_text("utf-8"), re.MULTILINE) if info.exists() else None
    return found[1] if found else None


def _instructions() -> list[str]:
    """Return the instruction sets that NumPy uses here: its ``exp2`` wants AVX-512, X86_V4."""
    return np.show_config(mode="dicts")["SIMD Extensions"]["found"]  # type: ignore[index, call-overload, no-any-return]


def write_section(title: str, body: str, page: Path | None = None) -> None:
    """Replace the section of that title, or append it, on the page for machines like this one."""
    page = PAGES / f"{file_name(machine())}.md" if page is None else page
    text = page.read_text("utf-8") if page.exists() else f"# {machine()}\n\n{INTRODUCTION}\n\n{LAST}"
    section = f"## {title}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    text, found = pattern.subn(lambda _: section + "\n", text)
    if not found:
        before, last, after = text.partition(LAST)
        text = f"{before.rstrip()}\n\n{section}\n{last}{after}"
    page.write_text(text.rstrip() + "\n", "utf-8")
