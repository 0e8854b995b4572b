"""Documents what ``attention_xp.interop`` has for a framework, which need not be installed: the source is read, not run.

``.. interop-functions:: torch`` gives an entry for each function in ``__all__`` of ``attention_xp.interop.torch``.
"""

import ast
import inspect
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from numpydoc.docscrape_sphinx import SphinxDocString
from sphinx.application import Sphinx

import attention_xp

INTEROP = Path(attention_xp.__file__).with_name("interop")


def functions(framework: str) -> dict[str, ast.FunctionDef]:
    """Return the public functions for a framework by their names, in the order of ``__all__``."""
    folder = INTEROP / framework
    trees = [ast.parse(p.read_text("utf-8")) for p in (sorted(folder.glob("*.py")) or [folder.with_suffix(".py")])]
    statements = [statement for tree in trees for statement in tree.body]
    public = next(
        ast.literal_eval(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    )
    found = {s.name: s for s in statements if isinstance(s, ast.FunctionDef)}
    return {name: found[name] for name in public}


def signature(function: ast.FunctionDef) -> str:
    """Return the arguments and their defaults, without types, which the docstring tells."""
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(function.args)})"


class InteropFunctions(Directive):
    """Writes a py:function for each."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Parse what autodoc would have written."""
        module = f"attention_xp.interop.{self.arguments[0]}"
        lines = [f".. py:module:: {module}", ""]
        for name, function in functions(self.arguments[0]).items():
            text = str(SphinxDocString(inspect.cleandoc(ast.get_docstring(function) or "")))
            lines += [f".. py:function:: {name}{signature(function)}", ""]
            lines += [f"   {line}" if line else "" for line in text.splitlines()] + [""]
        parent = nodes.section()
        parent.document = self.state.document
        self.state.nested_parse(StringList(lines, source=module), self.content_offset, parent)
        return parent.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("interop-functions", InteropFunctions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
