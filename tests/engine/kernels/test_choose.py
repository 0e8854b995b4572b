"""Which kernel computes a problem, and what is said when it cannot."""

from types import SimpleNamespace

import pytest

from attention_xp._engine.kernels import choose as chooser
from attention_xp._engine.kernels.choose import answers, attend
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from tests._inputs import inputs


def kernel(name, *, reason=None, is_worthwhile=True):
    """A kernel that gives a reason, or its own name instead of a result."""
    return SimpleNamespace(
        refusal=lambda problem, wanted: reason,
        is_worthwhile=lambda problem, wanted: is_worthwhile,
        attend=lambda problem, wanted: name,
    )


@pytest.fixture
def kernels(monkeypatch):
    """Three kernels: one that cannot, one that is not worth its while, and one that does."""
    made = {
        "fused": kernel("fused", reason="it cannot give weights"),
        "tiled": kernel("tiled", is_worthwhile=False),
        "dense": kernel("dense"),
    }
    monkeypatch.setattr(chooser, "KERNELS", made)
    monkeypatch.setattr(chooser, "OWN", made)
    return made


def problem(impl):
    """Some call."""
    return Problem.of(*inputs((2, 4, 5, 8)), None, 0.0, {"impl": impl})


@pytest.mark.parametrize(("impl", "expected"), [("auto", "dense"), ("tiled", "tiled"), ("dense", "dense")])
def test_the_best_kernel_or_the_one_that_was_asked_for(kernels, impl, expected):
    assert attend(problem(impl), Wanted()) == expected


def test_the_first_worthwhile_kernel_is_the_best(kernels, monkeypatch):
    monkeypatch.setitem(kernels, "tiled", kernel("tiled"))
    assert attend(problem("auto"), Wanted()) == "tiled"


def test_the_reason_is_told(kernels):
    with pytest.raises(ValueError, match=r"fused.*it cannot give weights"):
        attend(problem("fused"), Wanted(weights=True))


def test_every_kernel_answers(kernels):
    assert answers(problem("auto"), Wanted()) == {"fused": "it cannot give weights", "tiled": None, "dense": None}


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("lse", [False, True])
def test_only_what_is_wanted_is_given(weights, lse):
    result = attend(problem("auto"), Wanted(weights=weights, lse=lse))
    assert isinstance(result, Attended)
    assert (result.weights is not None) is weights
    assert (result.lse is not None) is lse
