"""Processes that are the ranks of one group, started once; every answer has a deadline."""

import importlib
import multiprocessing as mp
import time
import traceback
from typing import Any

__all__ = ["World"]

_JOBS, _COUNTS = "tests.distributed._torch_jobs", "tests.distributed._torch_counts"
_START, _ANSWER = 120.0, 60.0  # seconds; a machine may be busy


class World:
    """So many ranks, each a process that waits for jobs."""

    def __init__(self, n: int, folder: Any) -> None:
        self.n, context = n, mp.get_context("forkserver")
        context.set_forkserver_preload([_JOBS])  # torch is imported once for all
        self._ends, others = zip(*(context.Pipe() for _ in range(n)), strict=True)
        self._processes = [
            context.Process(target=_serve, args=(rank, n, str(folder / "store"), end), daemon=True)
            for rank, end in enumerate(others)
        ]
        for process, end in zip(self._processes, others, strict=True):
            process.start()
            end.close()  # so that the pipe breaks where a rank dies
        self._answers(_START)

    def run(self, job: str, *arguments: Any) -> list[Any]:
        """Return what each rank makes of a job, a function of one of the two modules; None from one that died."""
        for end in self._ends:
            end.send((job, arguments))
        return self._answers(_ANSWER)

    def _answers(self, seconds: float) -> list[Any]:
        deadline, found, wrong = time.monotonic() + seconds, [], []
        for rank, end in enumerate(self._ends):
            if not end.poll(max(deadline - time.monotonic(), 0)):
                self.close()
                raise AssertionError(f"rank {rank} gave no answer within {seconds} seconds")
            try:
                is_right, answer = end.recv()
            except EOFError:
                is_right, answer = True, None
            found.append(answer)
            wrong += [] if is_right else [f"rank {rank}:\n{answer}"]
        assert not wrong, "\n".join(wrong)
        return found

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, n: int, store: str, end: Any) -> None:
    """Be a rank until the pipe is closed."""
    torch, dist = (importlib.import_module(name) for name in ("torch", "torch.distributed"))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, n), rank=rank, world_size=n)
    modules = [importlib.import_module(name) for name in (_JOBS, _COUNTS)]
    end.send((True, "ready"))
    while True:
        job, arguments = end.recv()
        try:
            home = next(module for module in modules if hasattr(module, job))
            end.send((True, getattr(home, job)(*arguments)))
        except Exception:  # noqa: BLE001  # whatever it is, the test shows it
            end.send((False, traceback.format_exc()))
