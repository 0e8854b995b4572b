"""How far long calls are, on the terminal or by a function of the user's."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from attention_xp._engine.walkers.reports import Tally, reporting_to

__all__ = ["progress"]


def progress(report: Callable[[int, int], object] | None = None) -> AbstractContextManager[None]:
    """Show how far the attention functions called inside a ``with`` block are.

    Parameters
    ----------
    report : callable, optional
        ``report(done, total)`` is called when a call begins and after each of its jobs, by one thread at a time. Default: a
        bar on standard error, drawn by rich, or by tqdm where rich is not installed.

    Returns
    -------
    context manager
        Inside it, calls of this thread report. Blocks may be nested: the innermost one is told.

    Raises
    ------
    TypeError
        If `report` is not callable.
    ImportError
        If there is no `report`, and neither rich nor tqdm is installed.

    Notes
    -----
    A job is a block of query rows of some heads; an array ``(B, H, S, D)`` has the more of them the longer it is, and
    they need not take equally long. Both numbers count all calls inside the block so far: neither ever falls, and they are
    equal whenever a call has ended. What `report` raises ends the call, and reaches its caller.

    Told are calls that Python walks through tile by tile, forward and backward: those of ``impl="tiled"`` on NumPy and CuPy
    arrays and on torch's tensors. Nothing is told of small calls, which are computed at once, of the kernels of other
    libraries, of what runs inside a program of JAX, and of what torch compiles, traces or transforms.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import flash_attention, progress
    >>> x = np.zeros((1, 4, 2048, 16), dtype=np.float32)
    >>> seen = []
    >>> with progress(lambda done, total: seen.append((done, total))):
    ...     output = flash_attention(x, x, x, is_causal=True)
    >>> seen[0][0], seen[-1][0] == seen[-1][1] > 1
    (0, True)
    """
    if report is not None and not callable(report):
        raise TypeError(f"report must be callable, got {type(report).__name__}")
    return _told(_bar() if report is None else _as_context(report))


@contextmanager
def _told(opened: AbstractContextManager[Callable[[int, int], object]]) -> Iterator[None]:
    with opened as report, reporting_to(Tally(report)):
        yield


@contextmanager
def _as_context(report: Callable[[int, int], object]) -> Iterator[Callable[[int, int], object]]:
    yield report


def _bar() -> AbstractContextManager[Callable[[int, int], object]]:
    """Return the bar of a library that is installed."""
    try:
        import rich.progress  # noqa: PLC0415  # when it is used
    except ImportError:
        pass
    else:
        return _of_rich(rich)
    try:
        import tqdm.auto  # noqa: PLC0415
    except ImportError:
        raise ImportError(
            "progress() draws a bar with rich or tqdm: pip install rich, or give it a function, progress(report)"
        ) from None
    return _of_tqdm(tqdm.auto)


@contextmanager
def _of_rich(rich: Any) -> Iterator[Callable[[int, int], object]]:
    kinds = rich.progress
    columns = (
        kinds.TextColumn("attention"),
        kinds.BarColumn(),
        kinds.MofNCompleteColumn(),
        kinds.TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = rich.console.Console(stderr=True)
    with kinds.Progress(*columns, console=console) as bar:
        task = bar.add_task("attention", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _of_tqdm(tqdm: Any) -> Iterator[Callable[[int, int], object]]:
    with tqdm.tqdm(desc="attention", file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
