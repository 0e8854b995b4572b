"""How Sphinx builds this documentation."""

import atexit
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpydoc.xref import DEFAULT_LINKS

import attention_xp
from attention_xp import biases, masks, scaled_dot_product_attention
from attention_xp.viz import head_view

sys.path.insert(0, str(Path(__file__).with_name("extensions")))

import linked_names

project = "attention_xp"
author = "The attention_xp developers"
copyright = f"2026, {author}"  # noqa: A001  # the name is Sphinx's
release = version = attention_xp.__version__

extensions = [
    "accessible",
    "interop_functions",
    "linked_names",
    "mathml",
    "matplotlib.sphinxext.plot_directive",
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "literal"  # single backticks and double ones link alike, where extensions/linked_names.py finds a name
python_maximum_signature_line_length = 70  # longer ones have an argument a line
python_trailing_comma_in_multi_line_signatures = False
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"  # the tutorials run when they are built
nb_execution_raise_on_error = True
nb_execution_timeout = 60
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 0)]  # the head view in a frame: a widget would ask other sites
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
# The kernels that run the tutorials listen on this machine alone, and need not warn of it.
os.environ["IPYTHONDIR"] = ipython = tempfile.mkdtemp()
atexit.register(shutil.rmtree, ipython, ignore_errors=True)
profile = Path(ipython) / "profile_default"
profile.mkdir()
(profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n", "utf-8")
logging.getLogger("traitlets").setLevel(logging.WARNING)

autodoc_typehints = "none"  # the docstrings tell shapes and types
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
DEFAULT_LINKS.clear()  # they point to the sites of Python and NumPy, which are not asked while this one is built
numpydoc_xref_aliases = {
    name.rpartition(".")[2]: name for name, value in linked_names.public_names().items() if isinstance(value, type)
}

plot_formats = [("png", 110)]
plot_html_show_formats = plot_html_show_source_link = False

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"{project} {release}"
html_extra_path = ["generated/extra"]


class Offset(biases.Bias):
    """Prefers the key so many positions before the query."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def values(self, region: masks.Region) -> object:
        """Return how far from that key each is, negative."""
        return -3.0 * region.floating(abs(region.q_idx - region.kv_idx - self.offset))


def write_head_view(path: Path) -> None:
    """Write the view of the page on pictures: heads that look to a neighbour, to the beginning, to their like, or around."""
    tokens = ["The", "cat", "sat", "on", "the", "mat", "because", "the", "cat", "was", "tired", "."]
    rng = np.random.default_rng(0)
    words = {word: rng.standard_normal(16) for word in sorted({token.lower() for token in tokens})}
    x = np.stack([words[token.lower()] for token in tokens])
    layers = []
    for layer in range(3):
        noise = 0.3 * rng.standard_normal((4, *x.shape))
        heads = [
            scaled_dot_product_attention(0.2 * x + noise[0], x, x, bias=Offset(layer), is_causal=True)[1],
            scaled_dot_product_attention(0 * x, x, x, bias=-2.0 * np.arange(len(x)), is_causal=True)[1],
            scaled_dot_product_attention((1 + layer) * x + noise[2], x, x, is_causal=True)[1],
            scaled_dot_product_attention(noise[3], x, x, is_causal=True)[1],
        ]
        layers.append(np.stack(heads)[None])
    path.parent.mkdir(parents=True, exist_ok=True)
    head_view(layers, tokens, layer=1).save(path)


def setup(app: object) -> None:  # noqa: ARG001
    """Write the head view, and refuse to build an API page that leaves out a public name."""
    write_head_view(Path(__file__).with_name("generated") / "extra" / "head_view.html")
    page = set(re.findall(r"\w+", Path(__file__).with_name("api.md").read_text("utf-8")))
    missing = {name.rpartition(".")[2] for name in linked_names.public_names()} - page
    if missing:
        raise RuntimeError(f"docs/api.md does not mention {', '.join(sorted(missing))}")
