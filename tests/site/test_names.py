"""Names in single backticks in docstrings are links, or arguments, or fields of what is public."""

import importlib
import inspect
import re
import sys

import pytest

from tests.site.conftest import ROOT

NAME = re.compile(r"(?<![`:\w])`([A-Za-z_][\w.]*)`(?![`_\w])")
ELSEWHERE = {"grad_output", "output"}  # of the function that `attention_vjp` returns


@pytest.fixture(scope="module")
def linked_names():
    for package in ("docutils", "sphinx", "numpydoc"):
        pytest.importorskip(package)
    sys.path.insert(0, str(ROOT / "docs" / "extensions"))
    try:
        return importlib.import_module("linked_names")
    finally:
        sys.path.pop(0)


def test_no_name_in_single_backticks_is_unknown(linked_names):
    names = linked_names.public_names()
    bare = {name.rpartition(".")[2] for name in names}
    classes = {name.rpartition(".")[2]: value for name, value in names.items() if isinstance(value, type)}
    known = bare | linked_names.arguments(names) | ELSEWHERE
    known |= {field for value in classes.values() for field in [*dir(value), *inspect.signature(value).parameters]}
    documented = {full: value for full, value in names.items() if not inspect.ismodule(value)}
    unknown = set()
    for full, value in documented.items():
        for name in NAME.findall(inspect.getdoc(value) or ""):
            owner, _, member = name.removeprefix("attention_xp.").rpartition(".")
            if not (
                member in known if owner in ("", *linked_names.SUBMODULES) else hasattr(classes.get(owner), member)
            ):
                unknown.add((full, name))
    assert unknown == set()


@pytest.mark.parametrize(
    ("before", "is_theirs"), [("as in PyTorch's ", True), ("torch, ", True), ("of torch: ", False), ("ours is ", False)]
)
def test_a_name_of_torch_is_no_link_to_ours(linked_names, before, is_theirs):
    nodes = linked_names.nodes
    literal = nodes.literal("", "scaled_dot_product_attention")
    nodes.paragraph("", "", nodes.Text(before), literal)
    assert linked_names._is_of_torch(literal) is is_theirs
