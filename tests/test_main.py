"""``python -m attention_xp``: the table, its verdict and its exit status."""

from dataclasses import replace

import pytest

from attention_xp import __main__ as main
from attention_xp._self_check import JOBS


@pytest.fixture
def quick(monkeypatch):
    """Check two small jobs only."""
    small = [
        replace(job, inputs=tuple(a[..., :8, :] for a in job.inputs))
        for job in JOBS
        if job.name == "scaled dot-product"
    ]
    monkeypatch.setattr(main, "JOBS", small)
    return small[0]


def test_all_jobs_are_right_on_numpy(monkeypatch, capsys):
    monkeypatch.setattr(main, "ROUNDS", 1)
    assert main.main(["--backend", "numpy"]) == 0
    out, err = capsys.readouterr()
    for job in ("scaled dot-product", "multi-head", "self", "cross", "causal", "padded"):
        assert job in out
    assert "6 of 6 checks agree" in out
    assert "[6/6] done" in err


def test_a_wrong_result_is_told(monkeypatch, capsys, quick):
    def wrong(xp, *inputs):
        output, weights = quick.ours(xp, *inputs)
        return output * 1.001, weights

    monkeypatch.setattr(main, "JOBS", [replace(quick, ours=wrong)])
    assert main.main(["--backend", "numpy"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_nan_is_wrong(monkeypatch, capsys, quick):
    def undefined(xp, *inputs):
        output, weights = quick.ours(xp, *inputs)
        return output, weights * float("nan")

    monkeypatch.setattr(main, "JOBS", [replace(quick, ours=undefined)])
    assert main.main(["--backend", "numpy"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_what_is_missing_is_told(monkeypatch, capsys, quick):
    monkeypatch.setitem(main.MODULES, "torch", "no_such_module")
    assert main.main([]) == 0
    assert "torch: not installed; add it with: pip install torch" in capsys.readouterr().out


def test_what_was_asked_for_and_is_missing_fails(monkeypatch, capsys, quick):
    monkeypatch.setitem(main.MODULES, "torch", "no_such_module")
    assert main.main(["--backend", "torch"]) == 1
    assert "torch: not installed" in capsys.readouterr().out
