"""The array libraries of this machine, and the devices of each."""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from attention_xp._backend.libraries import creation_namespace
from attention_xp._typing import Array, Device, Namespace

__all__ = ["MODULES", "Place", "Side", "add_backends", "find_places"]

MODULES = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy", "cupy": "cupy"}
HOW_TO_ADD = {
    "torch": "pip install torch",
    "jax": "pip install jax",
    "cupy": "pip install cupy-cuda12x (or cupy-cuda13x), with an NVIDIA GPU",
}


@dataclass(frozen=True)
class Place:
    """A library on a device."""

    backend: str
    version: str
    device_name: str
    xp: Namespace
    device: Device
    wait: Callable[[Array], Any]
    to_host: Callable[[Array], Array]

    @property
    def name(self) -> str:
        """Library, version and device."""
        return f"{self.backend} {self.version} on {self.device_name}"

    def array(self, values: Any, dtype: str = "float32") -> Array:
        """Return numbers of NumPy as an array here."""
        return self.xp.asarray(values, dtype=getattr(self.xp, dtype), device=self.device)

    def side(self, function: Callable[..., Any], *arrays: Array) -> "Side":
        """Return a function with its arguments, compiled where the library compiles."""
        if self.backend == "jax":
            function = sys.modules["jax"].jit(function).lower(*arrays).compile()
        return Side(self, function, arrays)


@dataclass(frozen=True)
class Side:
    """One of two functions that are compared, with its arguments."""

    place: Place
    function: Callable[..., Any]
    arrays: tuple[Array, ...]

    def __call__(self) -> Any:
        """Return the result once it is there."""
        result = self.function(*self.arrays)
        self.place.wait(result[0] if isinstance(result, tuple) else result)
        return result


def add_backends(parser: argparse.ArgumentParser) -> None:
    """Add the option that names libraries."""
    parser.add_argument(
        "--backend",
        action="append",
        choices=sorted(MODULES),
        help="only this array library; may be given several times",
    )


def find_places(wanted: list[str] | None) -> tuple[list[Place], list[str]]:
    """Return every usable library and device, and a sentence for each that is missing."""
    places, missing = [], []
    for backend in wanted or MODULES:
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
        yield Place(backend, version, name, creation_namespace(module), device, wait, to_host)


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

    # Tensor cores would round float32 products to ten bits; the commands ask for what the dtype promises.
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
