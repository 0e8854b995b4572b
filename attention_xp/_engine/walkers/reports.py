"""Who is told how far the walkers of the host are: nobody, or what `progress` has put here."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from attention_xp._backend.libraries import is_torch_namespace
from attention_xp._backend.modes import is_recorded
from attention_xp._typing import Namespace

__all__ = ["Tally", "reported", "reporting_to", "tally"]

_T = TypeVar("_T")


class Tally:
    """The jobs of all calls inside one `progress`: how many are known, and how many of them are done."""

    def __init__(self, tell: Callable[[int, int], object]) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._done = self._total = 0

    def expect(self, jobs: int) -> None:
        """Count jobs that a walker begins with."""
        self._count(0, jobs)

    def step(self) -> None:
        """Count a job as done."""
        self._count(1, 0)

    def _count(self, done: int, jobs: int) -> None:
        """Tell the new numbers, one thread at a time, so that they never fall.

        What is told may compute attention itself; that is not counted, nor waited for.
        """
        with self._lock:
            self._done, self._total = self._done + done, self._total + jobs
            with reporting_to(None):
                self._tell(self._done, self._total)


_TALLY: ContextVar[Tally | None] = ContextVar("attention_xp_tally", default=None)

tally = _TALLY.get


@contextmanager
def reporting_to(new: Tally | None) -> Iterator[None]:
    """Let the walkers that this context calls report to a tally, or to nobody."""
    token = _TALLY.set(new)
    try:
        yield
    finally:
        _TALLY.reset(token)


def reported(xp: Namespace, parts: Sequence[_T]) -> Iterable[_T]:
    """Return the parts that a loop visits, each reported when it asks for the next one.

    Where torch records what the loop does there is nothing to tell: it runs later, or not in Python.
    """
    if is_torch_namespace(xp) and is_recorded():
        return parts
    found = tally()
    return parts if found is None else _counted(found, parts)


def _counted(found: Tally, parts: Sequence[_T]) -> Iterator[_T]:
    found.expect(len(parts))
    for part in parts:
        yield part
        found.step()
