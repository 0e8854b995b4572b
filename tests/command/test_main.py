"""``python -m attention_xp``: which command runs, its help, and its exit codes."""

import os
import subprocess
import sys
import types

import pytest

from attention_xp._command import main as entrance, plan
from attention_xp._command.main import COMMANDS, main
from tests.command._terminal import PLAIN, ROOT, run


def code_of(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
@pytest.mark.parametrize("columns", [40, 100])
def test_help_is_no_wider_than_the_screen(monkeypatch, capsys, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert code_of(*command, "--help") == 0
    out = capsys.readouterr().out
    assert "exit codes" in out
    words = [len(word) for word in out.split()]
    # argparse breaks no word, such as the name of an option with its values
    assert max(map(len, out.splitlines())) <= max(columns, max(words) + columns // 2)
    assert out.isascii()


def test_help_names_all_commands(capsys):
    code_of("--help")
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in out] == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["chekc"], "invalid choice: 'chekc'"),
        (["check", "--backend", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["show"], "SENTENCE"),
        (["show", "  "], "expected some words"),
        (["show", "words", "--output", "/no/such/folder/view.html"], "there is no folder"),
        (["bench", "--lengths", "256,many"], "expected a positive whole number, got 'many'"),
        (["bench", "--heads", "0"], "expected a positive whole number, got '0'"),
        (["bench", "--output", "plot.docx"], "--output must end in one of"),
        (["bench", "--output", "/no/such/folder/plot.svg"], "there is no folder"),
        (["explain", "--shape", "1,2,3"], "expected four numbers B,H,Sq,D, got '1,2,3'"),
        (["explain", "--window", "1,2,3"], "expected one number or two"),
        (["explain", "--kv-heads", "3"], "multiple"),
        (["explain", "--keys", "4096", "--causal"], "query_offset"),
        (["explain", "--dtype", "bfloat16"], "numpy has no bfloat16: torch and jax have, --backend torch"),
        (["explain", "--dropout", "2"], "dropout_rate"),
        (["explain", "--impl", "fused"], "there is no fused kernel for numpy arrays"),
    ],
)
def test_wrong_usage_exits_with_two(capsys, arguments, complaint):
    assert code_of(*arguments) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--backend", "numpy"]])
def test_without_a_command_all_is_checked(monkeypatch, given):
    seen = []
    fake = types.SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--backend"), run=lambda args: seen.append(args.backend) or 0
    )
    monkeypatch.setitem(sys.modules, "attention_xp._command.check", fake)
    assert main(given) == 0
    assert seen == [given[1] if given else None]


def test_the_version_is_told(capsys):
    assert code_of("--version") == 0
    assert capsys.readouterr().out == f"attention_xp {entrance.__version__}\n"


def test_who_interrupts_sees_no_traceback(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    fake = types.SimpleNamespace(add_arguments=lambda parser: None, run=interrupt)
    monkeypatch.setitem(sys.modules, "attention_xp._command.check", fake)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "attention_xp", "explain", "--no-measure"],
        stdout=writing, stderr=subprocess.PIPE, check=False, cwd=ROOT, env=PLAIN,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_array_library_but_numpy_is_needed():
    hidden = "".join(
        f"sys.modules[{name!r}] = None; " for name in ("rich", "torch", "jax", "cupy", "matplotlib", "tqdm")
    )
    code = (
        f"import sys; {hidden}from attention_xp._command.main import main; sys.exit(main(['explain', '--no-measure']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT, env=PLAIN, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiled   chosen" in done.stdout


def test_planning_is_handed_on(monkeypatch):
    seen = []
    fake = types.SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--ranks", type=int), run=lambda args: seen.append(args.ranks)
    )
    monkeypatch.setitem(sys.modules, plan._HOME, fake)
    assert main(["plan", "--ranks", "8"]) == 0
    assert seen == [8]


def test_without_planning_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(plan, "_HOME", "attention_xp.distributed._no_such_module")
    assert main(["plan"]) == 1
    assert "not part of this version" in capsys.readouterr().err


def test_it_runs_as_a_module():
    done = run("explain", "--no-measure", "--shape", "1,2,8,4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dense   chosen" in done.stdout
