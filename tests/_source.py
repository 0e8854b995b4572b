"""The source code of the package, read without running it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "attention_xp"

_CREATION = frozenset({"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"})


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def needs(path: Path, package: str) -> bool:
    """Whether a module cannot be imported without a package: it imports it at its top, or a module or folder that does."""
    return package in _needed(path)


@cache
def _needed(path: Path) -> frozenset[str]:
    """The packages without which a module cannot be imported; every test process asks this of every module."""
    needed: set[str] = set()
    found, waiting = {path}, [path]
    while waiting:
        packages, files = _imported(waiting.pop())
        needed |= packages
        waiting += files - found
        found |= files
    return frozenset(needed)


@cache
def _imported(path: Path) -> tuple[frozenset[str], frozenset[Path]]:
    """The packages that a module imports at its top, and the modules of this one that Python runs before it."""
    text = path.read_text(encoding="utf-8")
    folders = (folder / "__init__.py" for folder in path.parents if folder.is_relative_to(PACKAGE))
    files = {file for file in folders if file != path}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("attention_xp"):
            home = PACKAGE.parent.joinpath(*node.module.split("."))
            names = (home / f"{name.name}.py" for name in node.names)
            files.update(file for file in (home.with_suffix(".py"), home / "__init__.py", *names) if file.is_file())
    return frozenset(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)), frozenset(files)


def standard_modules() -> list[Path]:
    """The modules that are written in the array API standard: all but bridges to one library."""
    bridges = {"fused", "interop", "distributed", "viz"}
    return [path for path in modules() if not bridges & set(path.relative_to(PACKAGE).parts)]


def namespace_attributes(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield every ``xp.name``, ``something.xp.name`` and ``array_namespace(...).name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_namespace(node.value):
            yield node


def _is_namespace(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in {"array_namespace", "common_namespace"}
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name == "xp"


def creations_without_device(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield calls such as ``xp.zeros(3)`` that leave the device to chance."""
    attributes = set(namespace_attributes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.func in attributes and node.func.attr in _CREATION:
            keywords = {keyword.arg for keyword in node.keywords}
            copies_an_array = node.func.attr == "asarray" and "copy" in keywords and isinstance(node.args[0], ast.Name)
            if "device" not in keywords and not copies_an_array:
                yield node


def defined_names(tree: ast.Module) -> set[str]:
    """Return the public functions and classes that a module defines at its top level."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}
