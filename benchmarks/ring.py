"""Ring attention on two processes of one thread, against one process with two threads.

``python -m benchmarks ring`` prints the ratio of times, that of the processor times of all processes, and when in a call
messages were sent and blocks computed.
"""

import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from attention_xp._command.duel import Duel, Pace, Turn, duel, take_turn

__all__ = ["COLUMNS", "TRACE", "Event", "Line", "cells", "measure", "trace_cells"]

RANKS, SHAPE, SMALL = 2, (1, 8, 8192, 64), (1, 2, 256, 16)
KINDS = ("tiled", "tiled, gradients")  # on torch's tensors on the CPU, NumPy computes
COLUMNS = ["call", "ring ms", "alone ms", "ratio", "processor"]
TRACE = ["call", "rank", "what", "from, ms", "to, ms"]
WAIT = 600.0  # seconds for an answer


@dataclass(frozen=True)
class Event:
    """What a rank did in a call, in milliseconds from when its first message was sent."""

    rank: int
    what: str
    start: float
    stop: float


@dataclass(frozen=True)
class Line:
    """A kind of call, in turns, and what the ranks did in one call of the ring."""

    name: str
    outcome: Duel
    events: list[Event]


def measure(pace: Pace, *, quick: bool = False) -> Iterator[Line]:
    """Yield the comparison of each kind of call, which is causal."""
    shape = SMALL if quick else SHAPE
    with _processes(RANKS, 1, shape) as ring, _processes(1, RANKS, shape) as alone:
        for kind in KINDS:
            yield Line(kind, duel(_turns(ring, kind), _turns(alone, kind), pace), _events(ring, kind))


def cells(line: Line) -> tuple[str, ...]:
    """Return the entries of a line for the columns."""
    outcome = line.outcome
    times = (f"{1e3 * seconds:.1f}" for seconds in (outcome.ours, outcome.theirs))
    return f"causal, {line.name}", *times, f"{outcome.ratio:.2f}", f"{outcome.cpu_ratio:.2f}"


def trace_cells(line: Line, event: Event) -> tuple[str, ...]:
    """Return the entries of an event."""
    return line.name, str(event.rank), event.what, f"{event.start:.2f}", f"{event.stop:.2f}"


def _turns(ends: list[Any], kind: str) -> Callable[[int], Turn]:
    def turn(calls: int) -> Turn:
        found = _asked(ends, "turn", kind, calls)
        return Turn(max(wall for wall, _ in found), sum(cpu for _, cpu in found))

    return turn


def _events(ends: list[Any], kind: str) -> list[Event]:
    traces = _asked(ends, "trace", kind, 1)
    zero = min(start for trace in traces for _, start, _ in trace)
    return [
        Event(rank, what, 1e3 * (start - zero), 1e3 * (stop - zero))
        for rank, trace in enumerate(traces)
        for what, start, stop in trace
    ]


def _asked(ends: list[Any], job: str, kind: str, calls: int) -> list[Any]:
    for end in ends:
        end.send((job, kind, calls))
    answers = []
    for end in ends:
        if not end.poll(WAIT):
            raise TimeoutError(f"a process gave no answer within {WAIT:g} seconds")
        answers.append(end.recv())
    return answers


@contextmanager
def _processes(n: int, threads: int, shape: tuple[int, ...]) -> Iterator[list[Any]]:
    """Start so many ranks with so many threads each, and end them."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pairs = [context.Pipe() for _ in range(n)]
        settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)  # what libraries read when they are loaded
        store = str(Path(folder) / "store")
        processes = [
            context.Process(target=_serve, args=(rank, n, threads, store, shape, end), daemon=True)
            for rank, (_, end) in enumerate(pairs)
        ]
        for process, (_, end) in zip(processes, pairs, strict=True):
            process.start()
            end.close()
        for name, value in before.items():
            os.environ.update({name: value}) if value is not None else os.environ.pop(name)
        try:
            yield [end for end, _ in pairs]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _serve(rank: int, n: int, threads: int, store: str, shape: tuple[int, ...], end: Any) -> None:
    """Be a rank: answer jobs until the pipe is closed."""
    torch, dist = import_module("torch"), import_module("torch.distributed")
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=dist.FileStore(store, n), rank=rank, world_size=n)
    while True:
        job, kind, calls = end.recv()
        call = _call(torch, dist, rank, n, shape, kind)
        if job == "trace":
            call()
        turn = take_turn(call, calls, untimed=1) if job == "turn" else None
        end.send((turn.wall, turn.cpu) if turn is not None else _traced(call))


def _call(torch: Any, dist: Any, rank: int, n: int, shape: tuple[int, ...], kind: str) -> Callable[[], Any]:
    """Return the call of a rank, or of the whole in one process."""
    package = import_module("attention_xp")
    distributed = import_module("attention_xp.distributed")
    impl, is_differentiated = kind.partition(",")[0], kind.endswith("gradients")
    whole = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    shards = [distributed.shard_sequence(x, n, layout="zigzag")[rank].contiguous() for x in whole]
    query, key, value, up = shards if n > 1 else list(whole)
    inputs = [x.clone().requires_grad_(is_differentiated) for x in (query, key, value)]

    def call() -> Any:
        if n > 1:
            output = distributed.ring_attention(*inputs, is_causal=True, impl=impl, group=dist.group.WORLD)
        else:
            output = package.flash_attention(*inputs, is_causal=True, impl=impl)
        return torch.autograd.grad(output, inputs, up) if is_differentiated else output

    return call


def _traced(call: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """Return what a call of a ring does, with the times on the clock of the machine."""
    ring, messages, slopes = (
        import_module(f"attention_xp.distributed._torch.{name}") for name in ("ring", "messages", "slopes")
    )
    events: list[tuple[str, float, float]] = []

    def timed(owner: Any, name: str, what: Callable[..., str]) -> Callable[[], None]:
        original = getattr(owner, name)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            start = time.monotonic()
            result = original(*arguments, **options)
            events.append((what(*arguments), start, time.monotonic()))
            return result

        setattr(owner, name, wrapper)
        return lambda: setattr(owner, name, original)

    places = [
        timed(
            messages.Channel, "start", lambda *given: f"messages sent: {given[3] if len(given) > 3 else 'comparison'}"
        ),
        timed(messages.Pending, "wait", lambda *_: "waited"),
        timed(ring, "flash_attention", lambda query, key, *_: f"block {query.shape[-2]} x {key.shape[-2]}"),
        timed(ring, "merge_attention", lambda *_: "merged"),
        timed(slopes, "attention_gradients", lambda query, key, *_: f"block back {query.shape[-2]} x {key.shape[-2]}"),
    ]
    try:
        call()
    finally:
        for undo in places:
            undo()
    return sorted(events, key=lambda event: event[1])
