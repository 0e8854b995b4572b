"""Writes formulas as MathML, which browsers show by themselves: without JavaScript, and without asking another site."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

# What docutils does not know, and what will do instead.
UNKNOWN = {
    r"\\dots\b": r"\\ldots",
    r"\\(?:[bB]igg?[lr]?|textstyle)(?![a-zA-Z])": "",
}


def mathml(text: str, *, as_block: bool) -> str:
    """Return a formula as MathML."""
    for command, known in UNKNOWN.items():
        text = re.sub(command, known, text)
    return latex2mathml.tex2mathml(text, as_block=as_block).replace(r"\_", "_")


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    text = node.astext()
    if r"\\" in text and r"\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    # Room for what stands above and below the line, which is cut off where a formula scrolls.
    translator.body.append(f'<div class="math" style="padding: 0.5em 0">{mathml(text, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the writer."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
