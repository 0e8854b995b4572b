"""``python tools/size.py``: how much code there is to read, against the limits in ``pyproject.toml``.

Counted are tokens of code, without comments, docstrings and layout: however densely the same code is written, their number
stays the same. A change that needs a higher limit raises it and says in its commit why.
"""

import ast
import io
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "attention_xp"
LAYOUT = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"}


class Size(NamedTuple):
    tokens: int
    definitions: int
    modules: int = 1


def docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """Yield where strings begin that are statements by themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.col_offset


def size_of(text: str) -> Size:
    """Return the size of one module."""
    tree = ast.parse(text)
    left_out = set(docstrings(tree))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    count = sum(tokenize.tok_name[token.type] not in LAYOUT and token.start not in left_out for token in tokens)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return Size(count, sum(isinstance(node, kinds) for node in ast.walk(tree)))


def sizes(package: Path = PACKAGE) -> dict[str, Size]:
    """Return the size of each folder of a package, with all that is in it, by its path."""
    totals: dict[str, Counter[str]] = {}
    for file in sorted(package.rglob("*.py")):
        size = size_of(file.read_text(encoding="utf-8"))
        for folder in file.relative_to(package.parent).parents[:-1]:
            totals.setdefault(folder.as_posix(), Counter()).update(size._asdict())
    return {folder: Size(**total) for folder, total in totals.items()}


def main() -> int:
    """Print the sizes of all folders; 1 where one is over its limit."""
    limits = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["size"]["tokens"]
    found = sizes()
    print(f"{'folder':40} {'tokens':>8} {'limit':>8} {'definitions':>12} {'modules':>8}")
    for folder, size in sorted(found.items()):
        limit = f"{limits[folder]:,}" if folder in limits else ""
        print(f"{folder:40} {size.tokens:8,} {limit:>8} {size.definitions:12,} {size.modules:8,}")
    over = [folder for folder, limit in limits.items() if found[folder].tokens > limit]
    for folder in over:
        print(f"{folder} has {found[folder].tokens:,} tokens of code, more than {limits[folder]:,}", file=sys.stderr)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
