"""Which kernel is the fastest, and which one ``impl="auto"`` takes, on a ladder of problem sizes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from statistics import median
from typing import Any

from attention_xp import explain
from attention_xp._command.duel import Pace
from benchmarks.case import Case
from benchmarks.contenders import absent
from benchmarks.worker import ContenderError, Workers

__all__ = ["BORDERS", "COLUMNS", "Line", "cells", "measure"]

KERNELS = {"NumPy": ("dense", "tiled"), "torch": ("dense", "tiled", "fused"), "JAX": ("dense", "tiled")}
ARRAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "NumPy": ("numpy", lambda numpy: numpy.asarray),
    "torch": ("torch", lambda torch: torch.from_numpy),
    "JAX": ("jax.numpy", lambda numpy: numpy.asarray),
}
COLUMNS = ["case", "scores", "dense ms", "tiled ms", "fused ms", "fastest", "auto", "auto / fastest"]
EXPONENTS = range(12, 23, 2)  # of 2, of the number of scores
ROUNDS = 5
TURN = 0.05  # seconds at least


@dataclass
class Line:
    """What one case took with each kernel, in seconds; a reason instead where a kernel gave none."""

    case: Case
    scores: int
    seconds: dict[str, float]
    auto: str = ""
    problem: str = ""

    @property
    def fastest(self) -> str:
        """The kernel that took the least time."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def loss(self) -> float:
        """How much longer the kernel that was chosen took than the fastest."""
        return self.seconds[self.auto] / self.seconds[self.fastest]


def small_heads(scores: int) -> Case:
    """Many heads of 32 queries and keys."""
    heads = scores // 32**2
    return Case((max(1, heads // 16), min(heads, 16), 32, 32))


def long_head(scores: int) -> Case:
    """One head."""
    return Case((1, 1, round(scores**0.5), 64))


def some_heads(scores: int) -> Case:
    """Eight heads, the usual."""
    return Case((1, 8, max(1, round((scores / 8) ** 0.5)), 64))


def decoding(scores: int) -> Case:
    """One query for each of sixteen heads."""
    return Case((1, 16, 1, 64), kv_length=scores // 16)


def causal(scores: int) -> Case:
    """Eight causal heads."""
    return replace(some_heads(scores), causal=True)


def masked(scores: int) -> Case:
    """Eight heads under a boolean array."""
    return replace(some_heads(scores), option="boolean mask")


def wide_values(scores: int) -> Case:
    """Values that are twice as wide as keys."""
    return replace(some_heads(scores), value_width=128)


EVERYWHERE = (small_heads, long_head, some_heads, causal, decoding)


def borders_numpy() -> tuple[str, tuple[Callable[[int], Case], ...]]:
    """The kernels on NumPy arrays: from how many scores on tiles are faster than the formula."""
    return "NumPy", (*EVERYWHERE, masked)


def borders_torch() -> tuple[str, tuple[Callable[[int], Case], ...]]:
    """The kernels on tensors, eager: where torch's own kernel is the fastest, and where tiles are."""
    return "torch", (*EVERYWHERE, masked, wide_values)


def borders_jax() -> tuple[str, tuple[Callable[[int], Case], ...]]:
    """The kernels on JAX arrays, jitted."""
    return "JAX", EVERYWHERE


BORDERS = {suite.__name__: suite for suite in (borders_numpy, borders_torch, borders_jax)}


def measure(name: str, pace: Pace, *, quick: bool) -> Iterator[Line]:
    """Time all kernels of a suite, in turns."""
    library, families = BORDERS[name]()
    missing = absent(*(f"ours, {library}, {kernel}" for kernel in KERNELS[library]))
    with Workers() as workers:
        for family in families:
            for exponent in EXPONENTS[:2] if quick else EXPONENTS:
                line = Line(family(2**exponent), 2**exponent, {}, problem=missing or "")
                yield line if missing else _timed(workers, library, line, replace(pace, turn=min(pace.turn, TURN)))


def _timed(workers: Workers, library: str, line: Line, pace: Pace) -> Line:
    times: dict[str, list[float]] = {kernel: [] for kernel in KERNELS[library]}
    try:
        for turn in range(min(pace.rounds, ROUNDS) + 1):
            for kernel, kept in times.items():
                calls = pace.calls(kept[0]) if turn else 1
                kept.append(workers[f"ours, {library}, {kernel}"].turn(line.case, calls).wall)
    except ContenderError as error:
        return replace(line, problem=str(error))
    seconds = {kernel: median(kept[1:]) for kernel, kept in times.items()}
    return replace(line, seconds=seconds, auto=chosen(library, line.case))


def chosen(library: str, case: Case) -> str:
    """Return the kernel that ``impl="auto"`` takes for a case."""
    module, make = ARRAYS[library]
    convert = make(import_module(module))
    return explain(*map(convert, case.inputs()), **case.options(convert)).kernel


def cells(line: Line) -> list[str]:
    """Return the texts of a line, one for each column."""
    start = [str(line.case), f"2^{line.scores.bit_length() - 1}"]
    if line.problem:
        return [*start, line.problem, *[""] * (len(COLUMNS) - 3)]
    times = [f"{1e3 * line.seconds[k]:.3f}" if k in line.seconds else "" for k in ("dense", "tiled", "fused")]
    return [*start, *times, line.fastest, line.auto, f"{line.loss:.2f}"]
