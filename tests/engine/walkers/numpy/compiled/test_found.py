"""Whether numba is taken, and what happens where it cannot be."""

import math
import os
import subprocess
import sys
import warnings

import numba
import numpy as np
import pytest

from attention_xp import attention_vjp, explain, flash_attention
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile import base
from attention_xp._engine.walkers.numpy.compiled import found
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp.biases import AlibiBias

LARGE = np.zeros((1, 1, 1024, 64), np.float32)


@pytest.fixture
def anew(monkeypatch):
    """Let numba be looked for once more, as in a new process, and forget what is found."""
    monkeypatch.setattr(found, "FEWEST_PAIRS", 2**20)
    monkeypatch.setattr(found, "FEWEST_PACKED_ROWS", 64)
    found.loops.cache_clear()
    yield monkeypatch
    found.loops.cache_clear()


def test_a_large_call_is_compiled_and_a_small_one_is_not(anew):
    assert explain(LARGE, LARGE, LARGE).loops == "numba"
    small = LARGE[:, :, :1000]
    assert explain(small, small, small).loops == "the call is small"


def test_single_passes_in_float64_are_compiled_where_numpy_has_no_vector_powers(anew):
    """Whole steps are compiled in any dtype, but not where they need functions of Python."""
    wide, options = LARGE.astype(np.float64), {"score_mod": lambda score, *_: score}
    for has_powers, loops in ((True, "NumPy is faster in float64 on this processor"), (False, "numba")):
        anew.setattr(found, "has_vector_powers", lambda dtype, has=has_powers: has)
        assert explain(wide, wide, wide).loops == "numba"
        assert explain(wide, wide, wide, **options).loops == loops


def steps_of(query, key, **options):
    dropout_rate = options.pop("dropout_rate", 0.0)
    return found.steps_of(Problem.of(query, key, key, None, dropout_rate, {**options, "impl": "tiled"}))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True, "softcap": 3.0, "sinks": np.zeros(1, np.float32)},
        {"dropout_rate": 0.1, "rng": 1},
        {"bias": AlibiBias(np.ones(1, np.float32))},
        {"key_positions": np.arange(1024)},
    ],
    ids=str,
)
def test_whole_steps_are_compiled_in_every_dtype(anew, options, dtype):
    anew.setattr(found, "has_vector_powers", lambda dtype: True)  # which changes nothing
    query = LARGE.astype(dtype)
    options = {n: x.astype(dtype) if n == "sinks" else x for n, x in options.items()}
    assert isinstance(steps_of(query, query, **options), Steps)


@pytest.mark.parametrize(
    ("rows", "keys", "options"),
    [
        (1024, 1024, {"score_mod": lambda score, *indices: score}),
        (1024, 1024, {"key_positions": np.arange(1024), "dropout_rate": 0.1, "rng": 1}),
        (1024, 1000, {}),
        (63, 20000, {}),
    ],
)
def test_steps_are_left_to_numpy_that_need_python_or_are_small(anew, rows, keys, options):
    query, key = (np.zeros((1, 1, n, 8), np.float32) for n in (rows, keys))
    assert steps_of(query, key, **options) is None


def test_there_are_no_steps_without_numba(anew):
    anew.setattr(found, "find_spec", lambda name: None)
    assert steps_of(LARGE, LARGE) is None


def test_without_numba_nothing_is_said(anew):
    anew.setattr(found, "find_spec", lambda name: None)
    assert explain(LARGE, LARGE, LARGE).loops == "numba is not installed"
    assert flash_attention(LARGE, LARGE, LARGE).shape == LARGE.shape


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_a_soft_cap_is_compiled_where_numpy_has_no_vector_powers_of_2(anew, impl):
    anew.setattr(found, "FEWEST_PAIRS", 0)
    anew.setattr(found, "has_vector_powers", lambda dtype: False)
    anew.setattr(base, "_is_vectorised", lambda function, dtype: function != "exp2")
    x, gradient = np.random.default_rng(0).standard_normal((2, 1, 2, 70, 8))
    scores = 3.0 * np.tanh(x @ x.mT / (3.0 * math.sqrt(8)))
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    output, vjp = attention_vjp(x, x, x, softcap=3.0, impl=impl)
    np.testing.assert_allclose(output, weights @ x, rtol=1e-13)
    grad_weights = gradient @ x.mT
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdims=True)) * (1 - (scores / 3.0) ** 2)
    np.testing.assert_allclose(vjp(gradient).query, grad_scores @ x / math.sqrt(8), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("obstacle", ["import", "jit"])
def test_a_numba_that_fails_is_told_once_and_numpy_goes_on(anew, obstacle):
    if obstacle == "import":  # as numba does where it does not support the NumPy at hand
        anew.setitem(sys.modules, "attention_xp._engine.walkers.numpy.compiled.loops", None)
        anew.delattr(sys.modules["attention_xp._engine.walkers.numpy.compiled"], "loops", raising=False)
    else:
        anew.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.warns(RuntimeWarning, match="numba is installed and cannot be used") as told:
        first = flash_attention(LARGE, LARGE, LARGE)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(first, flash_attention(LARGE, LARGE, LARGE))
    assert explain(LARGE, LARGE, LARGE).loops == "numba cannot be used"


PROGRAM = """
import sys, warnings
warnings.simplefilter("always")
import numpy as np
import attention_xp
x = np.ones((1, 1, {size}, 64), np.float32)
attention_xp.flash_attention(x, x, x)
print("numba" in sys.modules)
"""


def run(size, **env):
    """Run a program of its own, and return what it printed and warned of."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(size=size)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_numba_is_imported_by_a_large_call_alone():
    assert run(500) == ("False", "")
    assert run(1100) == ("True", "")


def test_a_read_only_cache_compiles_anew_with_one_warning(tmp_path):
    # No folder beside the code, none of the user: numba then knows no place.
    is_used, told = run(1100, NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator", NUMBA_CACHE_DIR="")
    assert is_used == "True"
    assert told.count("RuntimeWarning") == 1
    assert "NUMBA_CACHE_DIR names one" in told
