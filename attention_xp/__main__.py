"""``python -m attention_xp``: check and time attention on every array library of this machine."""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from attention_xp import __version__
from attention_xp._backend.libraries import creation_namespace
from attention_xp._self_check import JOBS, Job
from attention_xp._typing import Array, Device, Namespace

MODULES = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy", "cupy": "cupy"}
HOW_TO_ADD = {
    "torch": "pip install torch",
    "jax": "pip install jax",
    "cupy": "pip install cupy-cuda12x (or cupy-cuda13x), with an NVIDIA GPU",
}
ROUNDS = 5
TOLERANCE = 2e-5  # some 20 times the rounding of the jobs' results in float32


@dataclass(frozen=True)
class Place:
    """A library on a device."""

    backend: str
    version: str
    device_name: str
    xp: Namespace
    device: Device
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
    wait: Callable[[Array], Any]
    to_host: Callable[[Array], Array]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    place: Place
    job: str
    error: float
    ours: float
    usual: float


def find_places(wanted: list[str]) -> tuple[list[Place], list[str]]:
    """Return every usable library and device, and a sentence for each that is missing."""
    places, missing = [], []
    for backend in wanted:
        try:
            found = list(_places_of(backend, importlib.import_module(MODULES[backend])))
        except ImportError:
            missing.append(f"{backend}: not installed; add it with: {HOW_TO_ADD.get(backend, 'pip install numpy')}")
            continue
        places += found
        if not found:
            missing.append(f"{backend}: installed, but no CUDA device available")
    return places, missing


def _places_of(backend: str, module: Any) -> Iterator[Place]:
    version = sys.modules[backend].__version__
    for name, device, wait, to_host in _DEVICES[backend]():
        xp = creation_namespace(module)
        yield Place(backend, version, name, xp, device, _COMPILED.get(backend, lambda f: f), wait, to_host)


# Name, device, how to wait for a result, how to bring it to the host.
_Device = tuple[str, Device, Callable[[Array], Any], Callable[[Array], Array]]


def _torch_devices() -> list[_Device]:
    import torch  # noqa: PLC0415

    cpu: list[_Device] = [("cpu", torch.device("cpu"), lambda x: x, lambda x: x.numpy())]
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return cpu + [
        (
            torch.cuda.get_device_name(i),
            torch.device("cuda", i),
            lambda _: torch.cuda.synchronize(),
            lambda x: x.cpu().numpy(),
        )
        for i in gpus
    ]


def _jax_devices() -> list[_Device]:
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    # Tensor cores would round float32 products to ten bits; the check asks for what the dtype promises.
    jax.config.update("jax_default_matmul_precision", "float32")
    devices = jax.devices() if jax.default_backend() == "cpu" else [*jax.devices(), jax.devices("cpu")[0]]
    return [(d.device_kind, d, lambda x: x.block_until_ready(), np.asarray) for d in devices]


def _cupy_devices() -> list[_Device]:
    import cupy as cp  # noqa: PLC0415

    try:
        available = cp.cuda.is_available()
    except Exception:  # noqa: BLE001  # without a driver the question itself raises an error of CUDA's own
        available = False
    if not available:
        return []
    name = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)["name"].decode()
    return [(name, None, lambda _: cp.cuda.Device().synchronize(), cp.asnumpy)]


_DEVICES: dict[str, Callable[[], list[_Device]]] = {
    "numpy": lambda: [("cpu", "cpu", lambda x: x, lambda x: x)],
    "torch": _torch_devices,
    "jax": _jax_devices,
    "cupy": _cupy_devices,
}


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return sys.modules["jax"].jit(function)  # type: ignore[no-any-return]


_COMPILED = {"jax": _jit}


def check(place: Place, job: Job) -> Row:
    """Run one job both ways and compare ours with the float64 formula."""
    import numpy as np  # noqa: PLC0415

    inputs = [place.xp.asarray(a, dtype=place.xp.float32, device=place.device) for a in job.inputs]
    ours = place.compiled(partial(job.ours, place.xp))
    usual = place.compiled(partial(job.usual, place.xp))
    expected = job.usual(np, *job.inputs)
    pairs = zip(ours(*inputs), expected, strict=True)
    error = float(np.max([np.max(np.abs(place.to_host(got) - want)) for got, want in pairs]))  # NaN stays NaN
    usual(*inputs)  # warm as well
    times = [(_time(place, ours, inputs), _time(place, usual, inputs)) for _ in range(ROUNDS)]
    return Row(place, job.name, error, median(t for t, _ in times), median(t for _, t in times))


def _time(place: Place, function: Callable[..., Any], inputs: list[Array]) -> float:
    start = perf_counter()
    place.wait(function(*inputs)[0])
    return perf_counter() - start


def is_right(row: Row) -> bool:
    """Whether the error is one of rounding (NaN is not)."""
    return row.error <= TOLERANCE


def render(rows: list[Row]) -> str:
    """Lay the rows out as a table."""
    head = ("backend", "version", "device", "job", "largest error", "time", "usual formula", "")
    body = [
        (
            row.place.backend,
            row.place.version,
            row.place.device_name,
            row.job,
            f"{row.error:.1e}",
            f"{1e3 * row.ours:.2f} ms",
            f"{1e3 * row.usual:.2f} ms",
            "ok" if is_right(row) else "WRONG",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]
    return "\n".join([lines[0], "-" * sum(widths, 2 * (len(widths) - 1)), *lines[1:]])


def _report(done: int, total: int, what: str) -> None:
    """Say on standard error how far the work is, on one line where that is a terminal."""
    before, after = ("\x1b[2K", "\r" if done < total else "\n") if sys.stderr.isatty() else ("", "\n")
    print(f"{before}[{done}/{total}] {what}", end=after, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Check every installed library; return 0 if all is right."""
    parser = argparse.ArgumentParser(prog="python -m attention_xp", description=__doc__)
    parser.add_argument(
        "--backend", action="append", choices=sorted(MODULES), help="check only this library (repeatable)"
    )
    parser.add_argument("--version", action="version", version=f"attention_xp {__version__}")
    wanted = parser.parse_args(arguments).backend
    places, missing = find_places(wanted or list(MODULES))
    work = [(place, job) for place in places for job in JOBS]
    rows = []
    for done, (place, job) in enumerate(work):
        _report(done, len(work), f"{place.backend} on {place.device_name}: {job.name}")
        rows.append(check(place, job))
    _report(len(work), len(work), "done")
    wrong = [row for row in rows if not is_right(row)]
    verdict = f"{len(rows) - len(wrong)} of {len(rows)} checks agree with the float64 formula"
    print("\n".join([render(rows) if rows else "", "", verdict, *missing]))
    return 1 if wrong or not rows or (wanted and missing) else 0


if __name__ == "__main__":
    sys.exit(main())
