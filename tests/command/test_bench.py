"""``bench``: the table and the plot."""

import sys

import pytest

from attention_xp._command import curves, places
from attention_xp._command.duel import Pace
from attention_xp._command.main import main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(curves, "PACE", Pace(rounds=1, turn=0.0, limit=0.0))


def test_each_length_is_measured(capsys):
    assert main(["bench", "--backend", "numpy", "--lengths", "64,32", "--heads", "2", "--width", "8", "--causal"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "2 heads of width 8, float32, causal" in lines[0]
    assert [line.split()[0] for line in lines[5:7]] == ["32", "64"]
    for line in lines[5:7]:
        _, ours, other, theirs, ratio = line.split()
        assert other == "formula"
        assert min(float(ours), float(theirs), float(ratio)) > 0.0
    assert "[2/2] done" in err


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_plot_shows_both(tmp_path, capsys, monkeypatch, ending):
    plot = pytest.importorskip("attention_xp._command.plot")
    figures = []
    save = plot.Figure.savefig
    monkeypatch.setattr(plot.Figure, "savefig", lambda self, path: figures.append(self) or save(self, path))
    path = tmp_path / f"bench.{ending}"
    call = ["--backend", "numpy", "--lengths", "32,64", "--heads", "1", "--width", "8", "--window", "4,none"]
    assert main(["bench", *call, "--output", str(path)]) == 0
    assert path.stat().st_size > 1000
    (axes,) = figures[0].axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[32, 64], [32, 64]]
    assert axes.get_title() == "1 head of width 8, float32, window 4,none"
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    assert [text.get_text().partition(",")[0] for text in axes.get_legend().get_texts()] == ["attention_xp", "formula"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("queries and keys", "time in ms")
    assert str(path) in capsys.readouterr().out


def test_scores_that_are_too_large_are_not_tried(monkeypatch, capsys):
    monkeypatch.setattr(curves, "MOST_SCORES", 2000)
    assert main(["bench", "--backend", "numpy", "--lengths", "32,64", "--heads", "1", "--width", "8"]) == 0
    few, many = (line.split() for line in capsys.readouterr().out.splitlines()[5:7])
    assert float(few[3]) > 0.0
    assert float(many[1]) > 0.0
    assert many[2:] == ["formula", "too", "large"]


def test_without_matplotlib_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.delitem(sys.modules, "attention_xp._command.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "--output", str(tmp_path / "x.svg")]) == 1
    assert 'pip install "attention-xp[viz]"' in capsys.readouterr().err


def test_a_library_that_is_missing_fails(monkeypatch, capsys):
    monkeypatch.setitem(places.MODULES, "torch", "no_such_module")
    assert main(["bench", "--backend", "torch"]) == 1
    assert "torch: not installed" in capsys.readouterr().out
