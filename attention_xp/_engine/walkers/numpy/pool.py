"""Threads of our own for NumPy, with BLAS held to one thread meanwhile."""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

from attention_xp._engine.walkers.reports import tally

__all__ = ["Pool", "has_small_kernels", "run_jobs", "with_blas_held_to_one"]

_T = TypeVar("_T")
_SMALL_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"}  # names of OpenBLAS for processors with AVX-512


class _Blas:
    """The BLAS libraries of this process; several callers may hold them at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: set[object] = set()
        self._libraries: list[Any] | None = None
        self._before: list[int] = []

    def with_one_thread(self, do: Callable[[int], _T], wanted: int | None = None) -> _T:
        """Call a function with the number of threads that are wanted, or that BLAS had; BLAS has one meanwhile.

        An exception such as KeyboardInterrupt may arrive between any two steps, also while a `with` is entered or left.
        Therefore the hold is taken inside `try`, and given back twice: if the first time is interrupted, the second is not.
        """
        holder = object()
        try:
            try:
                return do(self._taken(holder, wanted))
            finally:
                self._give_back(holder)
        finally:
            self._give_back(holder)

    def _taken(self, holder: object, wanted: int | None) -> int:
        """Hold BLAS to one thread until the last holder gives it back."""
        with self._lock:
            if len(self._holders) == 0:
                self._before = [library.num_threads for library in self._found()]
            self._holders.add(holder)  # before anything is changed, so that it is changed back
            self._set([1] * len(self._before))
            allowed = max(self._before) if self._before else os.cpu_count() or 1
        return allowed if wanted is None else wanted

    def _give_back(self, holder: object) -> None:
        """Give BLAS its threads back when there is no other holder; a second call for the same holder does nothing."""
        with self._lock:
            if self._holders == {holder}:
                self._set(self._before)
            self._holders.discard(holder)  # after everything is changed back, so that it is tried again

    def let_go(self) -> None:
        """Reset in a forked child: holders, and the thread that may have the lock, exist in the parent alone."""
        self._lock = threading.Lock()
        if self._holders:
            self._set(self._before)
        self._holders = set()

    def has_small_kernels(self) -> bool:
        """Whether BLAS computes small products without copying the factors: OpenBLAS does with AVX-512."""
        apis = {(library.internal_api, getattr(library, "architecture", None)) for library in self._found()}
        return len(apis) > 0 and apis <= {("openblas", name) for name in _SMALL_KERNELS}

    def _found(self) -> list[Any]:
        if self._libraries is None:
            from threadpoolctl import ThreadpoolController  # noqa: PLC0415  # looks through all loaded libraries

            self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        return self._libraries

    def _set(self, counts: list[int]) -> None:
        for library, count in zip(self._found(), counts, strict=True):
            if library.num_threads != count:
                _set_from_here(library, count)


def _set_from_here(library: Any, count: int) -> None:
    """Set the number of threads of a BLAS library from any thread.

    From its version 3.8 on, threadpoolctl lets the first thread that ever set a number set others, and ignores all other
    threads without a word.
    """
    let_any_thread = getattr(library, "clear_controlling_thread", lambda *, force: None)
    let_any_thread(force=True)
    library.set_num_threads(count)
    let_any_thread(force=True)


class Pool:
    """An executor that is made when needed, and made anew in a forked child, which has no threads."""

    def __init__(self) -> None:
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def of(self, size: int) -> ThreadPoolExecutor:
        if self.executor is None or self.size < size:
            self.executor, self.size = ThreadPoolExecutor(size, thread_name_prefix="attention_xp"), size
        return self.executor

    def submit(self, task: Callable[[], _T], times: int) -> list[Future[_T]]:
        """Start a task on several threads, on none while the interpreter shuts down.

        It runs in a copy of the caller's context, where for instance its `np.errstate` holds.
        """
        try:
            return [self.of(times).submit(copy_context().run, task) for _ in range(times)]
        except RuntimeError:
            return []

    def forget(self) -> None:
        self.executor = None


_BLAS = _Blas()
_POOL = Pool()

with_blas_held_to_one = _BLAS.with_one_thread
has_small_kernels = cache(_BLAS.has_small_kernels)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BLAS.let_go)


def run_jobs(jobs: int, worker: Callable[[], AbstractContextManager[Callable[[int], None]]], threads: int) -> None:
    """Call ``do(i)`` for each job i, with the function `do` that a worker gives, on some threads and the caller's.

    `worker` is called once on each thread, for its buffers. The first exception of a job stops the
    hand-out and reaches the caller. Each job that is done is reported, where somebody listens.
    """
    listener = tally()
    if listener is not None:
        listener.expect(jobs)
    counter = itertools.count()  # its next is atomic
    stopped = threading.Event()

    def drain() -> None:
        try:
            with worker() as do:
                while not stopped.is_set() and (i := next(counter)) < jobs:
                    do(i)
                    if listener is not None:
                        listener.step()
        except BaseException:
            stopped.set()
            raise

    futures: list[Future[None]] = []
    try:
        futures = _POOL.submit(drain, min(threads, jobs) - 1)
        drain()
    finally:
        stopped.set()  # if the caller is interrupted, also for threads that are not in `futures` yet
        for future in futures:
            if not future.cancel():
                future.exception()
    for future in futures:
        if not future.cancelled():
            future.result()
