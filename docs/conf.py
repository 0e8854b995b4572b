"""How Sphinx builds this documentation."""

import re
from pathlib import Path

import attention_xp

project = "attention_xp"
author = "The attention_xp developers"
copyright = f"2026, {author}"  # noqa: A001  # the name is Sphinx's
release = version = attention_xp.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "autolink"  # single backticks link where there is something to link to

autodoc_typehints = "none"  # the docstrings tell shapes and types
autosummary_generate = True
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"{project} {release}"


def setup(app: object) -> None:  # noqa: ARG001
    """Refuse to build an API page that leaves out a public name."""
    page = set(re.findall(r"\w+", Path(__file__).with_name("api.md").read_text("utf-8")))
    submodules = attention_xp.biases, attention_xp.cache, attention_xp.masks
    missing = {*attention_xp.__all__, *(name for module in submodules for name in module.__all__)} - page
    if missing:
        raise RuntimeError(f"docs/api.md does not mention {', '.join(sorted(missing))}")
