"""Options and fixtures of the whole suite: which backends run, and the documents as tests."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from tests import _compiled_loops as compiled_loops, _cupy_double
from tests._backends import Backend
from tests._compiled import compiled
from tests._documents import documents, libraries_of
from tests._quick import combinations
from tests._source import needs

pytest_collect_file = documents().pytest()


os.environ.setdefault("KERAS_BACKEND", "numpy")  # Keras reads it once, when it is imported
os.environ.setdefault("MPLBACKEND", "agg")  # matplotlib needs no screen then

_FRAMEWORKS = ("dask", "distributed", "flax", "keras", "numba", "onnx", "transformers", "zarr")
_ABSENT = {backend.package for backend in Backend if not backend.is_installed()}
_ABSENT |= {name for name in _FRAMEWORKS if importlib.util.find_spec(name) is None}
_PYTHON = [path for folder in ("attention_xp", "tests") for path in Path(__file__).with_name(folder).rglob("*.py")]
collect_ignore = [str(path) for path in _PYTHON if any(needs(path, package) for package in _ABSENT)]
# Programs for type checkers, which tests/test_typing.py runs, and what Sphinx runs.
collect_ignore_glob = ["tests/typed/*.py", "docs/*.py", "docs/extensions/*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose backends."""
    group = parser.getgroup("backends")
    group.addoption(
        "--xp",
        action="append",
        default=[],
        metavar="BACKEND",
        help=f"run these backends only (repeat, or separate by commas): {', '.join(b.value for b in Backend)}",
    )
    group.addoption(
        "--require-gpu", action="store_true", help="fail where a backend finds no CUDA device instead of skipping"
    )
    group.addoption(
        "--compiled",
        action="store_true",
        help="let numba compile the loops over NumPy's tiles in calls of every size, and fail where it cannot",
    )
    group.addoption(
        "--quick",
        action="store_true",
        help="run each test with every value of each of its parameters that is not rare, but not with every combination of them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks and the examples of hypothesis; refuse backends that were asked for and are absent."""
    config.addinivalue_line("markers", "backends(*libraries): run the test on these libraries only")
    config.addinivalue_line("markers", "rare: --quick leaves the test, or the case of it, out")
    config.addinivalue_line("markers", "with_nan: the test makes NaN on purpose, which JAX is else told to refuse")
    tried = 50 if config.getoption("--quick") else 100
    settings.register_profile("attention_xp", deadline=None, derandomize=True, database=None, max_examples=tried)
    settings.load_profile("attention_xp")
    gc.set_threshold(200_000, 50, 100)  # to trace makes millions of objects, which are no garbage yet
    for backend in _chosen(config):
        if not backend.is_installed():
            raise pytest.UsageError(f"--xp={backend.value}: the package {backend.package} is not installed")
    if config.getoption("--compiled"):
        compiled_loops.force()
    is_wanted = Backend.CUPY in (_chosen(config) or Backend) and not config.getoption("--require-gpu")
    if is_wanted and Backend.CUPY.is_installed() and not Backend.CUPY.has_device():
        _cupy_double.install()


def pytest_report_header() -> list[str]:
    """Say which libraries are emulated."""
    emulated = [backend.package for backend in Backend if backend.is_emulated()]
    return [f"{name}: emulated over NumPy, no CUDA device" for name in emulated]


def _chosen(config: pytest.Config) -> list[Backend]:
    """The backends named by ``--xp``, none where the option is absent."""
    names = [name.strip() for option in config.getoption("--xp") for name in option.split(",")]
    unknown = [name for name in names if name not in {b.value for b in Backend}]
    if unknown:
        raise pytest.UsageError(f"--xp: no backend {unknown[0]!r}, choose from {', '.join(b.value for b in Backend)}")
    return [b for b in Backend if b.value in names]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that asks for a library on all chosen backends that it is meant for."""
    if "library" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("backends")
    chosen = _chosen(metafunc.config) or list(Backend)
    params = [b.pytest_param() for b in chosen if mark is None or b.like(*mark.args)]
    if not params:
        reason = f"--xp leaves out {', '.join(mark.args)}"
        params = [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    metafunc.parametrize("library", params, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what belongs to backends that are not chosen, and with ``--quick`` rare cases and most combinations.

    What asks for no library runs where NumPy is chosen, or one of the libraries that its mark names.
    """
    chosen = _chosen(config)
    left_out = {item for item in items if chosen and not _is_meant_for(item, chosen)}
    if config.getoption("--quick"):
        left_out |= {item for item in items if item.get_closest_marker("rare")}
        left_out |= combinations(item for item in items if item not in left_out)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _is_meant_for(item: pytest.Item, chosen: list[Backend]) -> bool:
    """Whether an item is a test of a library, a code block, or to run where one of these is."""
    if not isinstance(item, pytest.Function) or "library" in item.fixturenames:
        return True
    mark = item.get_closest_marker("backends")
    return any(b.like(*(mark.args if mark else ("numpy",))) for b in chosen)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the example of a docstring where a library that it imports cannot run."""
    if isinstance(item, pytest.DoctestItem):
        source = "".join(example.source for example in item.dtest.examples)
        for name in libraries_of(source):
            reason = _reason(item.config, name)
            if reason:
                pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Let JAX compute NaN where a test is about them, and be as its users have it where other people's code runs."""
    jax: Any = sys.modules.get("jax")
    if jax is None:
        return (yield)
    is_foreign = "interop" in item.path.parts
    with ExitStack() as stack:
        if is_foreign or item.get_closest_marker("with_nan"):
            stack.enter_context(jax.debug_nans(False))
        if is_foreign:
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Let go of figures, and of what JAX compiled before it is too much for a process."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    compiled.bound()


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Backend:
    """The backend under test; a skip with its reason where it cannot run."""
    backend = request.param
    problem = _problem(backend)
    if problem and backend.is_installed() and request.config.getoption("--require-gpu"):
        pytest.fail(f"{backend.value}: {problem}, and --require-gpu asks for one", pytrace=False)
    if problem:
        pytest.skip(f"{backend.value}: {problem}")
    return backend


@cache
def _problem(backend: Backend) -> str | None:
    """Why the backend cannot run here, asked once per run."""
    if not backend.is_installed():
        return f"the package {backend.package} is not installed"
    return None if backend.has_device() else "no CUDA device available"


@pytest.fixture(scope="session")
def xp(library: Backend) -> ModuleType:
    """The array API namespace under test."""
    return library.namespace()


@pytest.fixture(scope="session")
def device(library: Backend) -> Any:
    """The device that every array of the test lies on."""
    return library.device()


@pytest.fixture(scope="session")
def make(library: Backend) -> Callable[..., Any]:
    """Make an array under test: ``make(values, dtype=None)``; floats are float32 unless told."""
    return library.array


@pytest.fixture(scope="session", autouse=True)
def document_backends(request: pytest.FixtureRequest) -> Callable[[str], str | None]:
    """Tell why a code block that needs a library cannot run, for the documents."""

    return partial(_reason, request.config)


def _reason(config: pytest.Config, name: str) -> str | None:
    """Why an example that imports a library cannot run."""
    chosen = _chosen(config)
    if chosen and Backend(name) not in chosen:
        return f"--xp leaves out {name}"
    return _problem(Backend(name))
