"""Peak memory of a call beyond its input, in a process that has done nothing else.

``python -m benchmarks.memory NAME CASE`` prints the bytes.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from attention_xp._command.resident import rise
from benchmarks.case import Case
from benchmarks.contenders import find
from benchmarks.worker import ContenderError

__all__ = ["extra_memory", "peak_memory"]

WARM_UP = 512  # sequence length of the call that starts threads, and loads libraries and what numba compiles


def extra_memory(name: str, case: Case) -> int:
    """Return the bytes that a contender needs for a case beyond the input, output included, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name, case.to_json()],
        capture_output=True,
        check=False,
        env={**os.environ, **find(name).environment},
        text=True,
    )
    if done.returncode:
        raise ContenderError(done.stderr.strip().rpartition("\n")[-1])
    return int(done.stdout.split()[-1])


def peak_memory(call: Callable[[], Any]) -> int:
    """Return by how many bytes the resident memory of this process rises during a call."""
    try:
        return rise(call)
    except OSError:  # no Linux
        before = _high_water()
        _kept = call()  # the result counts
        return _high_water() - before


def _high_water() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measure(name: str, case: Case) -> int:
    counted = find(name).memory(case)
    if counted is not None:
        return counted
    find(name).call(case.at(WARM_UP))()
    return peak_memory(find(name).call(case))


if __name__ == "__main__":
    print(_measure(sys.argv[1], Case.from_json(sys.argv[2])))
