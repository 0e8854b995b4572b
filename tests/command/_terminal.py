"""The command in a process of its own, in a pipe or on a terminal, and the libraries that it is tried on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = [pytest.param(name, marks=pytest.mark.backends(name), id=name) for name in ("numpy", "torch", "jax")]
ROOT = Path(__file__).parents[2]
# Nothing of the terminal that runs the tests is handed on.
PLAIN = {
    name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")
}


def run(*arguments, env=None, text=True):
    """Run the command in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "attention_xp", *arguments],
        capture_output=True, check=False, cwd=ROOT, env={**PLAIN, **(env or {})}, encoding="utf-8" if text else None,
    )  # fmt: skip


def on_terminal(*arguments, env=None):
    """Run the command on a terminal of 100 columns and return what it shows, standard error included."""
    import fcntl  # noqa: PLC0415  # not on Windows
    import pty  # noqa: PLC0415
    import struct  # noqa: PLC0415
    import termios  # noqa: PLC0415

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "attention_xp", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env={**PLAIN, "TERM": "xterm", **(env or {})},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()
