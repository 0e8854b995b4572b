"""What can be told from the source alone, also about libraries that are not installed."""

import ast
import importlib
import subprocess
import sys
from contextlib import suppress

import pytest

import attention_xp
from tests._backends import NAMESPACES
from tests._source import (
    PACKAGE,
    creations_without_device,
    defined_names,
    modules,
    namespace_attributes,
    needs,
    standard_modules,
)

HEAVY = {"numpy", "torch", "jax", "cupy", "array_api_strict", "matplotlib", "rich", "argparse"}

_TIMED_IMPORT = """
import time, sys
start = time.process_time()
import attention_xp
print(time.process_time() - start, *sys.modules)
"""


def name_of(path):
    """The id of a module in the output of pytest."""
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("namespace", [pytest.param(n, marks=pytest.mark.backends(b)) for b, n in NAMESPACES.items()])
def test_every_name_exists_in_every_namespace(namespace):
    xp = pytest.importorskip(namespace)
    missing = [
        f"{name_of(path)}:{node.lineno}: xp.{node.attr}"
        for path in standard_modules()
        for node in namespace_attributes(ast.parse(path.read_text()))
        if not hasattr(xp, node.attr)
    ]
    assert missing == []


def test_nothing_is_created_on_a_device_by_chance():
    forgotten = [
        f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in standard_modules()
        for node in creations_without_device(ast.parse(path.read_text()))
    ]
    assert forgotten == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("xp.exp2(x)", ["exp2"]),
        ("problem.xp.where(c, x, y)", ["where"]),
        ("array_namespace(x).matmul(x, y)", ["matmul"]),
        ("f = xp.exp", ["exp"]),
        ("np.exp2(x)", []),
    ],
)
def test_the_search_finds_names(source, names):
    assert [node.attr for node in namespace_attributes(ast.parse(source))] == names


@pytest.mark.parametrize(
    ("source", "is_forgotten"),
    [
        ("xp.zeros(3)", True),
        ("xp.zeros(3, device=d)", False),
        ("problem.xp.arange(3, dtype=xp.int32)", True),
        ("xp.asarray([1.0])", True),
        ("xp.asarray([1.0], copy=True)", True),
        ("xp.asarray(x, copy=True)", False),
        ("xp.zeros_like(x)", False),
        ("np.zeros(3)", False),
    ],
)
def test_the_search_finds_creations(source, is_forgotten):
    assert bool(list(creations_without_device(ast.parse(source)))) is is_forgotten


def needing_libraries():
    """Every module but the entrances, marked with the libraries that it imports."""
    for path in modules():
        needed = [library for library in ("jax", "torch") if needs(path, library)]
        if path.stem not in {"__init__", "__main__"}:
            yield pytest.param(path, marks=pytest.mark.backends(*needed) if needed else (), id=name_of(path))


@pytest.mark.parametrize("path", list(needing_libraries()))
def test_all_names_what_a_module_defines(path):
    tree = ast.parse(path.read_text())
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for library in ("dask", "flax", "jax", "keras", "numba", "onnx", "torch", "transformers"):
        if needs(path, library):
            pytest.importorskip(library)
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert defined_names(tree) <= set(module.__all__)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


def test_the_names_of_the_package_are_sorted_and_exist():
    assert list(attention_xp.__all__) == sorted(set(attention_xp.__all__))
    for name in attention_xp.__all__:
        assert hasattr(attention_xp, name)


@pytest.mark.parametrize("name", ["", ".biases", ".cache", ".distributed", ".linear", ".masks", ".viz"])
def test_every_public_function_is_documented(name):
    functions = _functions_of(importlib.import_module(f"attention_xp{name}"))
    lacking = [
        f"{name}: {section}"
        for name, function in functions.items()
        for section in ("Parameters\n---", "Returns\n---", "Raises\n---", "Examples\n---")
        if section not in _docstring(function)
    ]
    assert lacking == []


def _functions_of(module):
    """The functions of a module by name, without those that want a library that is absent."""
    found = {}
    for name in module.__all__:
        with suppress(ImportError):
            found[name] = getattr(module, name)
    return {name: thing for name, thing in found.items() if type(thing).__name__ == "function"}


def test_every_public_function_tells_its_shapes_and_its_formula_or_source():
    functions = {
        f.__name__: f for n in attention_xp.__all__ if type(f := getattr(attention_xp, n)).__name__ == "function"
    }
    lacking = [
        name
        for name, text in (
            (name, _docstring(f)) for name, f in functions.items() if name not in {"explain", "progress"}
        )
        if "``(" not in text.partition("Raises\n---")[0] or not (".. math::" in text or "References\n---" in text)
    ]
    assert lacking == []


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/backends.md", "docs/options.md"])
def test_who_comes_from_another_layout_reads_of_it(page):
    text = (PACKAGE.parent / page).read_text("utf-8")
    assert [word for word in ("(B, S, H, D)", "(B, H, S, D)", "transpose(1, 2)", "swap") if word not in text] == []


@pytest.mark.parametrize("function", [attention_xp.flash_attention, attention_xp.scaled_dot_product_attention])
def test_attention_tells_its_layout_and_names_its_shapes(function):
    words = (
        "(B, S, H, D)",
        "x.transpose(1, 2)",
        "``(..., H, Sq, D)``",
        "``(..., Hkv, Sk, D)``",
        "``(..., Hkv, Sk, Dv)``",
    )
    assert [word for word in words if word not in function.__doc__] == []


def test_options_that_a_function_does_not_take_are_not_documented():
    text = attention_xp.varlen_attention.__doc__
    assert "key_lengths" not in text
    assert text.count("\nbias :") == text.count("\nquery_offset :") == 1


def _docstring(function):
    return "\n".join(line.strip() for line in (function.__doc__ or "").splitlines())


def _fresh_import():
    """Import the package in a new interpreter; return the time it took and what is loaded then."""
    run = subprocess.run(
        [sys.executable, "-c", _TIMED_IMPORT], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    seconds, *loaded = run.stdout.split()
    return float(seconds), set(loaded)


def test_the_import_loads_no_array_library():
    _, loaded = _fresh_import()
    assert "attention_xp" in loaded
    assert loaded & HEAVY == set()


def test_the_import_is_quick():
    assert min(_fresh_import()[0] for _ in range(7)) < 0.06
