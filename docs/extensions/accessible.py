"""Adds what the theme leaves out for those who use the keyboard or hear a page."""

from typing import Any

from sphinx.application import Sphinx

MENDED = {
    # They scroll.
    "body": (("<pre>", '<pre tabindex="0">'), ('class="math-wrapper', 'tabindex="0" class="math-wrapper')),
    "furo_navigation_tree": (('role="heading"', 'role="heading" aria-level="2"'),),
}


def mend(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:  # noqa: ARG001
    """Change the parts of a page."""
    for part, changes in MENDED.items():
        for theirs, ours in changes:
            if part in context:
                context[part] = context[part].replace(theirs, ours)


def setup(app: Sphinx) -> dict[str, Any]:
    """Mend each page after the theme has had its turn."""
    app.connect("html-page-context", mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
