"""The Python code blocks of README.md and docs/ as tests.

The blocks of a document share one namespace and run in order. A block that imports torch, jax or cupy
runs where that library can, and stands on its own: it imports all it needs. Every other block belongs to
NumPy. ``<!-- skip: next -->`` above a block leaves it out.
"""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

LIBRARIES = ("torch", "jax", "cupy")


def documents() -> Sybil:
    """Collect the Markdown files of the project."""
    return Sybil(
        path=str(Path(__file__).parents[1]),
        parsers=[CodeBlockParser("python", evaluate), SkipParser()],
        patterns=["README.md", "docs/*.md", "docs/interop/*.md"],
        fixtures=["document_backends"],
    )


def evaluate(example: Example) -> None:
    """Run a code block, or skip it with the reason why its library cannot run."""
    problem: Callable[[str], str | None] = example.namespace["document_backends"]
    for name in libraries_of(str(example.parsed)) or ("numpy",):
        reason = problem(name)
        if reason:
            pytest.skip(reason)
    PythonEvaluator()(example)


def libraries_of(source: str) -> tuple[str, ...]:
    """Return which of the optional array libraries a piece of code imports."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return tuple(name for name in LIBRARIES if name in modules)
