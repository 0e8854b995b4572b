"""Programs as users write them, under type checkers with the stubs of the libraries, and at run time."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = {path.stem: path for path in sorted((ROOT / "tests" / "typed").glob("*_*.py")) if path.stem != "__init__"}
MISTAKES = ROOT / "tests" / "typed" / "mistakes.py"
CHECKERS = ("mypy", "pyright")


def blocks_of_quick_start():
    """The code blocks of the README's quick start, as one program."""
    section = (ROOT / "README.md").read_text("utf-8").split("## Quick start")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with all programs, away from the package as those of users are."""
    folder = tmp_path_factory.mktemp("programs")
    for path in (*PROGRAMS.values(), MISTAKES):
        (folder / path.name).write_text(path.read_text("utf-8"), "utf-8")
    (folder / "quick_start.py").write_text(blocks_of_quick_start(), "utf-8")
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}), "utf-8")
    return folder


@pytest.fixture(scope="module", params=CHECKERS)
def reports(request, programs):
    """What a checker reports, as ``(file, line, text)``."""
    absent = [name for name in (request.param, "torch", "jax") if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} not installed: nox -s typing has all that this needs")
    return {"mypy": _mypy, "pyright": _pyright}[request.param](programs)


def _run(folder, *command, **env):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=os.environ | env, capture_output=True, text=True, check=False
    ).stdout


def _mypy(folder):
    options = ("--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache'}")
    output = _run(folder, "mypy", *options, ".", MYPYPATH=str(ROOT))
    assert re.search(r"^(Found|Success)", output, re.MULTILINE), output
    return [(m[1], int(m[2]), m[3]) for m in re.finditer(r"^(\w+\.py):(\d+): error: (.*)$", output, re.MULTILINE)]


def _pyright(folder):
    output = json.loads(_run(folder, "pyright", "--outputjson", "--pythonpath", sys.executable))
    found = [d for d in output["generalDiagnostics"] if d["severity"] == "error"]
    assert output["summary"]["filesAnalyzed"] >= len(PROGRAMS)
    return [(Path(d["file"]).name, d["range"]["start"]["line"] + 1, d["message"]) for d in found]


@pytest.mark.timeout(1200)  # to read all that the libraries declare takes a checker minutes, the first time
def test_checkers_accept_what_users_write(reports):
    assert [report for report in reports if report[0] != MISTAKES.name] == []


@pytest.mark.timeout(1200)
def test_checkers_report_every_mistake(reports):
    lines = MISTAKES.read_text("utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# reported")}
    assert {line for file, line, _ in reports if file == MISTAKES.name} == marked


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.backends(name.partition("_")[0])) for name in PROGRAMS]
)
def test_programs_run(name):
    importlib.import_module(f"tests.typed.{name}").main()
