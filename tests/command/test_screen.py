"""What the commands write on terminals, on narrow ones, and in pipes."""

import io
import os
import sys

import pytest

from attention_xp._command import screen
from attention_xp._command.figures import bytes_of, duration, milliseconds, size
from tests.command._terminal import on_terminal, run

COLUMNS = ("", "ms", "ratio")
ROWS = [["flash, [bold]", "12.5", "0.50"], ["dot product", "3.00", "1.20"]]
terminal = pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX")


@pytest.fixture
def pipe(monkeypatch):
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch, pipe):
    """Make standard output and error a terminal of so many columns; pytest captures them until the test begins."""

    def opened(columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return opened


def test_in_a_pipe_tables_are_plain(pipe, capsys):
    screen.table("numpy", COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "numpy",
        "                 ms  ratio",
        "-------------  ----  -----",
        "flash, [bold]  12.5   0.50",
        "dot product    3.00   1.20",
    ]


def test_what_is_too_wide_is_a_list(monkeypatch, pipe, capsys):
    monkeypatch.setenv("COLUMNS", "15")
    screen.table("numpy", COLUMNS, [["flash", "12.5", ""]])
    assert capsys.readouterr().out.splitlines() == ["numpy", "flash", "  ms     12.5"]


def test_on_a_terminal_rich_draws(open_terminal):
    pytest.importorskip("rich")
    tty = open_terminal()
    screen.table("numpy", COLUMNS, ROWS, bad=[1])
    text = tty.getvalue()
    assert "\x1b[" in text
    assert "\u2500" in text
    assert "flash, [bold]" in text
    assert [line for line in text.splitlines() if "dot product" in line and "31m" in line]


@pytest.mark.parametrize("without", ["rich", "colours", "cleverness"])
def test_a_terminal_may_be_plain(monkeypatch, open_terminal, without):
    tty = open_terminal()
    if without == "rich":
        monkeypatch.setitem(sys.modules, "rich", None)
    elif without == "colours":
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.setenv("TERM", "dumb")
    screen.table("numpy", COLUMNS, ROWS, bad=[1])
    assert "flash, [bold]  12.5   0.50" in tty.getvalue()
    assert "\x1b" not in tty.getvalue()
    assert tty.getvalue().isascii()


def test_what_a_stream_cannot_encode_is_escaped(monkeypatch, pipe):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    screen.say("vie\u0301w in /home/\u4e2d.html")
    sys.stdout.flush()
    assert raw.getvalue() == b"vie\\u0301w in /home/\\u4e2d.html\n"


def test_text_is_wrapped_and_paths_are_not(monkeypatch, pipe, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    screen.say("written to /a/path/that-is-longer/than-the-line.html now", "  ")
    assert capsys.readouterr().out.splitlines() == [
        "written to",
        "  /a/path/that-is-longer/than-the-line.html",
        "  now",
    ]


def test_progress_takes_one_line_of_a_terminal(open_terminal):
    tty = open_terminal(20)
    for done in range(3):
        screen.tell_progress(done, 2, "a very long name of a device")
    lines = tty.getvalue().split("\r")
    assert [len(line.rstrip("\n")) for line in lines] == [0, 19, 19, 19]
    assert tty.getvalue().count("\n") == 1


@terminal
def test_on_a_real_terminal_it_fits():
    text = on_terminal("explain", "--shape", "1,2,64,8", "--causal", env={"NO_COLOR": "1", "COLUMNS": "40"})
    lines = text.replace("\r\n", "\n").split("\n")
    assert "\x1b" not in text
    assert max(len(line.rpartition("\r")[2]) for line in lines) <= 40


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_pipes_of_any_encoding(encoding):
    done = run("explain", "--no-measure", env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout


def test_figures():
    assert [milliseconds(s) for s in (0.00123, 0.0123, 0.123)] == ["1.23", "12.3", "123"]
    assert [duration(s) for s in (0.0123, 1.5, 150, 9000)] == ["12.3 ms", "1.5 s", "2 min", "2.5 h"]
    assert [size(n) for n in (12, 2048, 3 * 2**30, 5 * 2**50)] == ["12 bytes", "2.00 KiB", "3.00 GiB", "5120 TiB"]
    assert [bytes_of(n) for n in (None, 2**20)] == ["", "1.00"]
