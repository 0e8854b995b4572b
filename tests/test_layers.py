"""No module of the package, or of the benchmarks, reaches itself by imports: neither those in functions nor those for types."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a package by their full names, the door of the whole aside: it hands out names on first use."""
    files = (file for file in folder.rglob("*.py") if file != folder / "__init__.py")
    return {
        ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that one names anywhere in its code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by a relative name"
            for whole in (f"{node.module}.{alias.name}" for alias in node.names):
                yield from [name for name in (whole, node.module or "") if name in known][:1]


def check_order(folder: Path) -> None:
    """Raise `CycleError` where modules of a package import each other."""
    known = modules(folder)
    TopologicalSorter({name: set(imported(file, known)) for name, file in known.items()}).prepare()


@pytest.mark.parametrize("package", ["attention_xp", "benchmarks"])
def test_no_module_reaches_itself(package):
    check_order(ROOT / package)


@pytest.mark.parametrize(
    "text",
    [
        "from made.first import x",
        "import made.first",
        "from made import first",
        "def f():\n    from made import first",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.first import x",
    ],
)
def test_a_circle_is_found_wherever_it_is_closed(tmp_path, text):
    folder = tmp_path / "made"
    folder.mkdir()
    for name, content in {
        "__init__": "",
        "first": "import made.second",
        "second": "import made.third",
        "third": "",
    }.items():
        (folder / f"{name}.py").write_text(content)
    check_order(folder)
    (folder / "third.py").write_text(text)
    with pytest.raises(CycleError):
        check_order(folder)
