"""The suite itself: which backends it runs, skips and refuses."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests._assertions import assert_close, dtype_name
from tests._backends import Backend, to_numpy
from tests._compiled import LIMIT, Compiled, compiled
from tests._documents import libraries_of

ROOT = Path(__file__).parents[1]


def run(*options):
    """Run one small test of the suite with options; return its exit status and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options]
    found = subprocess.run(
        [*command, "tests/test_softmax.py", "-k", "large_differences"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return found.returncode, found.stdout + found.stderr


def test_options_choose_backends():
    status, output = run("--xp=numpy,numpy:readonly")
    assert status == 0
    assert "2 passed" in output


def test_options_add_up():
    status, output = run("--xp=numpy", "--xp=numpy:readonly")
    assert status == 0
    assert "2 passed" in output


def test_an_unknown_backend_is_refused():
    status, output = run("--xp=nunpy")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "nunpy" in output


@pytest.mark.parametrize("backend", [b for b in Backend if not b.is_installed()])
def test_an_absent_package_is_refused(backend):
    status, output = run(f"--xp={backend.value}")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"{backend.package} is not installed" in output


@pytest.mark.backends("cupy")
def test_an_absent_gpu_is_a_skip_or_a_double_and_on_demand_a_failure():
    emulated = [b.value for b in Backend if b.is_emulated()]
    skipped = [b.value for b in Backend if b.is_installed() and not b.has_device()]
    blind = emulated + skipped
    if not blind:
        pytest.skip("every installed backend has its device here")
    status, output = run(f"--xp={','.join(blind)}", "-v")
    assert status == 0
    assert all(f"{name}: emulated over NumPy, no CUDA device" in output for name in emulated)
    assert all(f"{name}: no CUDA device available" in output for name in skipped)
    status, output = run(f"--xp={','.join(blind)}", "--require-gpu")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert all(f"{name}: no CUDA device available, and --require-gpu asks for one" in output for name in blind)


def test_arrays_are_of_the_backend(library, make):
    for dtype in library.dtypes():
        made = make([[1.5, -2.0]], dtype)
        assert dtype_name(made.dtype) == dtype
        np.testing.assert_array_equal(to_numpy(made), [[1.5, -2.0]])
    assert_close(make([0.5]), [0.5], library)
    with pytest.raises(AssertionError):
        assert_close(make([0.5]), [0.6], library)


def test_readonly_arrays_refuse_to_be_written_to():
    x = Backend.NUMPY_READONLY.array([1.0])
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 2.0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy as np\nx = np.ones(3)", ()),
        ("import torch", ("torch",)),
        ("import jax.numpy as jnp", ("jax",)),
        ("from jax import grad", ("jax",)),
        ("def f():\n    import cupy, torch", ("torch", "cupy")),
    ],
)
def test_code_blocks_tell_their_libraries(source, expected):
    assert libraries_of(source) == expected


@pytest.mark.backends("jax")
def test_what_is_compiled_is_counted_and_forgotten(make, monkeypatch):
    jax = importlib.import_module("jax")
    x = make([1.0])
    compiled.bound()
    before = compiled.count
    jax.jit(lambda x: x + x)(x)
    assert compiled.count > before
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    another = Compiled()
    another.bound()
    another.count = LIMIT
    another.bound()
    assert not cleared
    another.count = LIMIT + 1
    another.bound()
    assert cleared
    assert another.count == 0
