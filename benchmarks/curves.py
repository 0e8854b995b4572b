"""Time and peak extra memory against sequence length, for every backend and peer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from attention_xp._command.duel import Pace
from benchmarks.case import Case
from benchmarks.contenders import absent
from benchmarks.memory import extra_memory
from benchmarks.worker import ContenderError, Workers

__all__ = ["Curve", "measure"]

# Longest sequence by contender; those that hold all scores at once end early.
LONGEST = {
    "ours, NumPy": 8192,
    "ours, torch": 8192,
    "ours, torch, tiled": 4096,
    "ours, JAX": 8192,
    "ours, CuPy": 8192,
    "torch SDPA": 8192,
    "onnxruntime Attention": 4096,
    "usual formula": 4096,
    "Keras on NumPy": 2048,
    "jax.nn": 4096,
}
LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
ROUNDS = 3


@dataclass
class Curve:
    """Milliseconds and MiB of one contender by sequence length, or why there are none."""

    name: str
    time: dict[int, float]
    memory: dict[int, float]
    problem: str = ""


def measure(pace: Pace, lengths: Iterable[int] = LENGTHS) -> Iterator[Curve | str]:
    """Yield a line about what is measured next, and in the end the curves."""
    curves = {name: Curve(name, {}, {}, absent(name) or "") for name in LONGEST}
    with Workers() as workers:
        for case in (Case().at(length) for length in lengths):
            yield f"curves: {case}"
            _measure_length(workers, curves, case, pace)
    yield from curves.values()


def _measure_length(workers: Workers, curves: dict[str, Curve], case: Case, pace: Pace) -> None:
    """Measure all contenders at one length, in turns."""
    length = case.shape[-2]
    times: dict[str, list[float]] = {}
    for turn in range(ROUNDS + 1):
        for curve in _running(curves, length):
            calls = pace.calls(times[curve.name][0]) if turn else 1
            try:
                times.setdefault(curve.name, []).append(workers[curve.name].turn(case, calls).wall)
            except ContenderError as error:
                curve.problem = str(error)
    for curve in _running(curves, length):
        curve.time[length] = 1e3 * median(times[curve.name][1:])
        if curve.name != "ours, CuPy":  # its memory is that of the GPU
            curve.memory[length] = extra_memory(curve.name, case) / 2**20


def _running(curves: dict[str, Curve], length: int) -> Iterator[Curve]:
    return (curve for curve in curves.values() if not curve.problem and length <= LONGEST[curve.name])
