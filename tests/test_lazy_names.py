"""The names of the package: loaded on first use, and the same to type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attention_xp

PACKAGE = Path(attention_xp.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.stem not in {"__main__", "_self_check"}
    and not {"import jax", "import torch"} & set(path.read_text().splitlines())
)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    (names,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert ast.literal_eval(names) == attention_xp.__all__


def test_the_directory_lists_the_names():
    assert dir(attention_xp) == attention_xp.__all__


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'attention_xp' has no attribute 'no_such_name'"):
        attention_xp.no_such_name  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_every_module_can_be_imported_first(module):
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=PACKAGE.parent)
