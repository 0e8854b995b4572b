"""``check``: its tables, its verdict and its exit code."""

from dataclasses import replace

import numpy as np
import pytest

from attention_xp._command import check, jobs, places
from attention_xp._command.calls import Call
from attention_xp._command.duel import Pace
from attention_xp._command.main import main
from attention_xp._command.peak import extra_bytes
from tests.command._terminal import LIBRARIES

NAMES = ("dot product", "multi-head", "self", "cross", "causal", "padded", "flash", "flash, long", "flash, windowed")


@pytest.fixture(autouse=True)
def in_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(check, "PACE", Pace(rounds=1, turn=0.0, limit=0.0))


@pytest.fixture
def one(monkeypatch):
    """Check one small job only."""
    small = [
        replace(job, inputs=tuple(a[..., :8, :] for a in job.inputs))
        for job in jobs._small()
        if job.name == "dot product"
    ]
    monkeypatch.setattr(jobs, "_small", lambda: small)
    monkeypatch.setattr(jobs, "FLASH", {})
    return small


@pytest.fixture
def quick(monkeypatch):
    """Check with short sequences, of which one is long enough for tiles."""
    monkeypatch.setattr(jobs, "S", 32)
    monkeypatch.setattr(jobs, "CONTEXT", 48)
    monkeypatch.setattr(
        jobs,
        "FLASH",
        {
            "flash": Call.square(2, 64, 8),
            "flash, long": Call.square(1, 704, 8),
            "flash, windowed": Call.square(2, 256, 8, is_causal=True, window=(16, 0)),
        },
    )


@pytest.mark.parametrize("backend", LIBRARIES)
def test_all_jobs_are_right(capsys, quick, backend):
    pytest.importorskip(backend)
    assert main(["--backend", backend]) == 0
    out, err = capsys.readouterr()
    table = out.partition("\n\n")[0].splitlines()
    assert table[0].startswith(f"{backend} ")
    for name, line in zip(NAMES, table[3:], strict=True):
        assert line.startswith(f"{name} ")
        assert line.split()[-1] == "ok"
    assert {line.split()[-6] for line in table[9:]} == {{"torch": "SDPA", "jax": "jax.nn"}.get(backend, "formula")}
    assert "9 of 9 checks agree" in out
    assert "[9/9] done" in err


def test_a_narrow_screen_gets_a_list(capsys, monkeypatch, one):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["check", "--backend", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "dot product" in lines
    assert "  verdict  ok" in lines
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize(
    "wrong", [lambda out, w: (out * 1.001, w), lambda out, w: (out, w * float("nan"))], ids=["off", "nan"]
)
def test_a_wrong_result_is_told(capsys, one, wrong):
    right = one[0].ours
    one[0] = replace(one[0], ours=lambda *a: wrong(*right(*a)))
    assert main(["--backend", "numpy"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "0 of 1 checks agree" in out


def test_what_is_missing_is_told(monkeypatch, capsys, one):
    monkeypatch.setattr(places, "MODULES", {"numpy": "numpy", "torch": "no_such_module"})
    assert main([]) == 0
    assert "torch: not installed; add it with: pip install torch" in capsys.readouterr().out
    assert main(["--backend", "torch"]) == 1
    assert "torch: not installed" in capsys.readouterr().out


@pytest.mark.parametrize("window", [None, (16, 0)])
@pytest.mark.parametrize("backend", LIBRARIES)
def test_the_other_computes_the_same(backend, window):
    pytest.importorskip(backend)
    (place, *_), _ = places.find_places([backend])
    call = Call.square(2, 64, 8, is_causal=True, window=window)
    contest = jobs._flash(place, "flash", call)
    theirs = place.to_host(contest.theirs())
    theirs = theirs.swapaxes(1, 2) if backend == "jax" else theirs
    np.testing.assert_allclose(theirs[..., :: contest.step, :], contest.expected[0], atol=1e-5)
    assert contest.largest_error() < 1e-5


@pytest.mark.parametrize("backend", LIBRARIES)
def test_memory_is_that_of_the_result_and_more(backend):
    """The formula holds (4, 512, 512) scores of 4 bytes, a few times; tiles do not."""
    pytest.importorskip(backend)
    (place, *_), _ = places.find_places([backend])
    call = Call.square(4, 512, 8, impl="dense")
    arrays = call.arrays(place)
    call.ours(place, arrays)()
    extra = extra_bytes(call.ours(place, arrays))
    if extra is None:
        pytest.skip("only Linux counts this")
    assert 4 * 2**20 <= extra <= 20 * 2**20
    scores = replace(call, impl="tiled", dtype="float32")
    scores.ours(place, arrays)()
    assert extra_bytes(scores.ours(place, arrays)) < extra
