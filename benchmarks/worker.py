"""A process for each contender, because the thread pools of two libraries in one process disturb each other.

``python -m benchmarks.worker NAME`` reads one request a line from its input and answers with one line, both JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from types import TracebackType
from typing import Any, Self, TextIO

from attention_xp._command.duel import Turn, take_turn
from benchmarks.case import Case
from benchmarks.contenders import Call, find

__all__ = ["ContenderError", "Worker", "Workers"]

KEPT = 2  # prepared cases: a duel of one contender with itself has two


class ContenderError(Exception):
    """A contender cannot compute a case; the text is its own error."""


class Worker:
    """The process of one contender, seen from outside."""

    def __init__(self, name: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **find(name).environment},
            text=True,
        )

    def turn(self, case: Case, calls: int) -> Turn:
        """Let the contender take a turn."""
        answer = self._ask({"case": case.to_json(), "calls": calls})
        if "error" in answer:
            raise ContenderError(answer["error"])
        return Turn(**answer)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return dict(json.loads(self._process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            self._log.seek(0)
            last = self._log.read().strip().rpartition("\n")[-1]
            raise ContenderError(f"process ended: {last or self._process.wait()}") from None

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close(), self._process.stdout.close()
        self._process.terminate(), self._process.wait()
        self._log.close()


class Workers:
    """The processes of all contenders, each started when it is first asked for."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def __getitem__(self, name: str) -> Worker:
        if name not in self._workers:
            self._workers[name] = Worker(name)
        return self._workers[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for worker in self._workers.values():
            worker.close()


def _serve(name: str, requests: TextIO, answers: TextIO) -> None:
    prepared: OrderedDict[str, Call] = OrderedDict()
    for line in requests:
        request = json.loads(line)
        try:
            answer = vars(take_turn(_prepared(prepared, name, request["case"]), request["calls"]))
        except Exception as error:  # noqa: BLE001  # whatever a library raises goes into the table
            answer = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        print(json.dumps(answer), file=answers, flush=True)


def _prepared(prepared: OrderedDict[str, Call], name: str, case: str) -> Call:
    if case not in prepared:
        while len(prepared) >= KEPT:
            prepared.popitem(last=False)
        prepared[case] = find(name).call(Case.from_json(case))
    prepared.move_to_end(case)
    return prepared[case]


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as own_output:
        os.dup2(2, 1)  # what a library prints must not come between the answers
        _serve(sys.argv[1], sys.stdin, own_output)
