"""Which kernels compute which option on which library: the table of ``docs/capabilities.md``.

The options are those that the tests of all pairs combine, and the answers are what `explain` says, which is what the
choice of a kernel asks. ``python -m tests._capabilities`` writes the table anew, with NumPy, PyTorch and JAX installed.
"""

from pathlib import Path

from attention_xp import explain
from tests._backends import Backend
from tests.test_option_pairs import FACTORS, arguments_of, made

__all__ = ["COLUMNS", "PAGE", "REASON", "ROWS", "cells", "rows_of"]

PAGE = Path(__file__).parents[1] / "docs" / "capabilities.md"
COLUMNS = {"NumPy": Backend.NUMPY, "PyTorch": Backend.TORCH, "JAX": Backend.JAX, "array_api_strict": Backend.STRICT}
REASON = "why not `fused` on PyTorch"
ROWS = {
    "plain call": (),
    "causal, no offset": ("causal", "no offset"),
    "causal, no offset, padding": ("causal", "no offset", "key lengths"),
    **{"causal, with an offset" if name == "causal" else name: (name,) for name in FACTORS},
    "weights": ("weights",),
}


def answers(library, factors):
    """Return for each kernel why it cannot compute a call with some options, or None."""
    given, options = arguments_of([name for name in factors if name in FACTORS])
    if "no offset" in factors:
        options["query_offset"] = 0
    asked = {"return_lse": "return_lse" in options, "return_weights": "weights" in factors}
    arrays = {name: library.array(values) for name, values in given.items()}
    return explain(**arrays, **made(library, options), **asked).reasons


def cells(library):
    """Return the column of a library: for each row the kernels that can, and why the fused one cannot."""
    found = {name: answers(library, factors) for name, factors in ROWS.items()}
    return {
        name: (", ".join(f"`{k}`" for k in sorted(reasons) if reasons[k] is None), reasons["fused"] or "")
        for name, reasons in found.items()
    }


def rows_of(page):
    """Return the rows of the first table of a page: by the name of the row, its cells by the name of the column."""
    first = page[page.index("| option") :].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in first.splitlines()]
    head, _, *rows = [line + [""] * (len(lines[0]) - len(line)) for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def table():
    """Return the table as Markdown."""
    columns = {name: cells(backend) for name, backend in COLUMNS.items()}
    lines = [["option", *columns, REASON], ["---"] * (len(columns) + 2)]
    lines += [[row, *(c[row][0] for c in columns.values()), columns["PyTorch"][row][1]] for row in ROWS]
    return "".join(f"| {' | '.join(line)} |".replace("|  |", "| |") + "\n" for line in lines)


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    start = text.index("| option")
    end = text.index("\n\n", start) + 1
    PAGE.write_text(text[:start] + table() + text[end:], "utf-8")
