"""The names of the package: loaded on first use, and the same to type checkers."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attention_xp
from tests._source import needs

LIBRARIES = ("dask", "flax", "jax", "keras", "numba", "onnx", "torch", "transformers")
PACKAGE = Path(attention_xp.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__main__" and not any(needs(path, library) for library in LIBRARIES)
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


def test_nothing_but_the_public_names_is_there():
    assert [n for n in vars(attention_xp) if not n.startswith("_") and n not in attention_xp.__all__] == []


@pytest.mark.parametrize(
    ("name", "home"),
    [("CausalMask", "masks"), ("AlibiBias", "biases"), ("linear_attention", "linear"), ("head_view", "viz")],
)
def test_a_name_of_a_submodule_tells_where_it_is(name, home):
    text = f"module 'attention_xp' has no attribute '{name}'; it is in attention_xp.{home}: from attention_xp.{home} import {name}"
    with pytest.raises(AttributeError, match=f"^{re.escape(text)}$"):
        getattr(attention_xp, name)
    with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
        exec(f"from attention_xp import {name}")  # noqa: S102
    assert not hasattr(attention_xp, name)


def test_every_public_name_of_a_submodule_is_found():
    names = {home: getattr(attention_xp, home).__all__ for home in ("biases", "cache", "linear", "masks", "viz")}
    for own in names.values():
        for name in set(own) - set(attention_xp.__all__):
            first = next(other for other in names if name in names[other])  # `Region` is in two
            with pytest.raises(AttributeError, match=rf"it is in attention_xp\.{first}:"):
                getattr(attention_xp, name)


def test_an_import_of_an_unknown_name_is_refused_as_ever():
    with pytest.raises(ImportError, match="cannot import name 'no_such_name' from 'attention_xp'"):
        exec("from attention_xp import no_such_name")  # noqa: S102


def test_a_module_for_a_framework_is_loaded_when_it_is_first_named():
    program = "import sys, attention_xp; attention_xp.interop.onnx.attention; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)
    with pytest.raises(AttributeError, match=r"'attention_xp\.interop' has no attribute 'pytorch': it has .*, torch,"):
        attention_xp.interop.pytorch  # noqa: B018


def test_every_module_for_a_framework_can_be_named():
    public = {path.stem for path in (PACKAGE / "interop").iterdir() if not path.name.startswith(("_", "."))}
    assert set(attention_xp.interop._MODULES) == public
