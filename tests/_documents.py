"""The Python code blocks of README.md and docs/ as tests.

The blocks of a document share one namespace and run in order. A block that imports torch, jax or cupy
runs where that library can, and stands on its own: it imports all it needs. Every other block belongs to
NumPy. ``<!-- skip: next -->`` above a block leaves it out. What is plotted when the documentation is built, in blocks
``eval-rst``, runs as well, and so do the cells of the tutorials, which run once more when it is built.
"""

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import chdir, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.region import Lexeme

LIBRARIES = ("torch", "jax", "cupy")
FRAMEWORKS = ("dask",)


def documents() -> Sybil:
    """Collect the Markdown files of the project."""
    return Sybil(
        path=str(Path(__file__).parents[1]),
        parsers=[
            CodeBlockParser("python", evaluate),
            CodeBlockParser("{code-cell}", evaluate_cell),
            PlotParser(),
            SkipParser(),
        ],
        patterns=["README.md", "docs/*.md", "docs/interop/*.md", "docs/tutorials/*.md"],
        fixtures=["document_backends"],
    )


class PlotParser(CodeBlockParser):
    """Finds the blocks of reStructuredText that hold plot directives."""

    language = "{eval-rst}"

    def __call__(self, document: Document) -> Iterator[Region]:
        """Yield these blocks alone."""
        return (region for region in super().__call__(document) if ".. plot::" in str(region.parsed))

    def evaluate(self, example: Example) -> None:
        """Run what the directives hold after their options."""
        skip_without(example, ("numpy",))
        bodies = re.findall(r"^\.\. plot::\n((?:   .*\n|\n)+)", f"{example.parsed}\n", re.MULTILINE)
        assert bodies
        for body in bodies:
            exec(re.sub(r"\A(:[\w-]+:.*\n)+", "", dedent(body)), {})  # noqa: S102


def evaluate(example: Example) -> None:
    """Run a code block, or skip it with the reason why its library cannot run."""
    for name in imported(str(example.parsed)) & {*FRAMEWORKS}:
        pytest.importorskip(name)
    skip_without(example, libraries_of(str(example.parsed)) or ("numpy",))
    with TemporaryDirectory() as folder, chdir(folder) if "savefig(" in example.parsed else nullcontext():
        PythonEvaluator()(example)


def evaluate_cell(example: Example) -> None:
    """Run a cell of a tutorial without what stands between ``---``: how it is shown."""
    head = re.match(r"---\n.*?^---\n", str(example.parsed), re.DOTALL | re.MULTILINE)
    if head:
        lines = str(example.parsed)[head.end() :]
        example.parsed = Lexeme("\n" * head[0].count("\n") + lines, example.parsed.offset, example.parsed.line_offset)
    evaluate(example)


def skip_without(example: Example, libraries: tuple[str, ...]) -> None:
    """Skip a block with the reason why a library that it needs cannot run."""
    problem: Callable[[str], str | None] = example.namespace["document_backends"]
    for name in libraries:
        reason = problem(name)
        if reason:
            pytest.skip(reason)


def libraries_of(source: str) -> tuple[str, ...]:
    """Return which of the optional array libraries a piece of code imports."""
    modules = imported(source)
    return tuple(name for name in LIBRARIES if name in modules)


def imported(source: str) -> set[str]:
    """Return the packages that a piece of code imports."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return modules
