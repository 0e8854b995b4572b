"""The modules of the double, with what the wheel has in them and NumPy can compute."""

import contextlib
import importlib.machinery
from types import ModuleType
from typing import Any, Self

import numpy as np

from tests._cupy_double._array import give_methods, ndarray
from tests._cupy_double._functions import functions
from tests._cupy_double._values import computed, renamed, signature_of

__all__ = ["modules"]


class Device(contextlib.ContextDecorator):
    """The one device, which is none."""

    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(getattr(device, "id", device))
        if self.id != 0:
            raise ValueError("the double has one device")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return self.id

    def __int__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> None:
        """Make this the current device, which it is."""

    def synchronize(self) -> None:
        """Wait for what is computed: nothing is waited for."""


class Stream:
    """A stream of which everything is done at once."""

    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr, self.device_id = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def use(self) -> "Stream":
        """Make this the current stream."""
        return self

    def synchronize(self) -> None:
        """Wait for what is computed: nothing is waited for."""


Stream.null = Stream(null=True)


class Generator:
    """Random numbers of NumPy's generator, in arrays of the double."""

    __module__ = "cupy.random"

    def __init__(self, bit_generator: Any) -> None:
        self._numpy = bit_generator


def _give_draws(real: type) -> None:
    for name in dir(real):
        signature = signature_of(getattr(real, name)) if not name.startswith("_") else None
        if signature is not None and hasattr(np.random.Generator, name):

            def draw(self: Generator, *args: Any, _name: str = name, _signature: Any = signature, **kwargs: Any) -> Any:
                _signature.bind(self, *args, **kwargs)
                return computed(getattr(self._numpy, _name), *args, **kwargs)

            setattr(Generator, name, renamed(draw, getattr(real, name), signature))


def modules(wheel: ModuleType) -> dict[str, ModuleType]:
    """Return the modules by name."""
    give_methods(wheel.ndarray)
    _give_draws(wheel.random.Generator)
    own = {
        "cupy": {name: x for name, x in vars(wheel).items() if _is_plain(name, x)}
        | functions(wheel, np)
        | {"ndarray": ndarray, "__version__": wheel.__version__},
        "cupy.linalg": functions(wheel.linalg, np.linalg) | {"LinAlgError": np.linalg.LinAlgError},
        "cupy.fft": functions(wheel.fft, np.fft),
        "cupy.random": {
            "Generator": Generator,
            "default_rng": lambda seed=None: Generator(np.random.default_rng(seed)),
        },
        "cupy.cuda": {
            "Device": Device,
            "Stream": Stream,
            "is_available": lambda: True,
            "get_device_id": lambda: 0,
            "get_current_stream": lambda device_id=-1: Stream.null,
        },
        "cupy.cuda.device": {"Device": Device},
        "cupy.cuda.stream": {"Stream": Stream},
        "cupy.cuda.runtime": {
            "getDeviceCount": lambda: 1,
            "getDeviceProperties": lambda device: {"name": b"emulated over NumPy"},
        },
    }
    own["cupy.linalg"]["__all__"] = [name for name in wheel.linalg.__all__ if name in own["cupy.linalg"]]
    made = {name: _module(name, contents) for name, contents in own.items()}
    for name, module in made.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
    return made


def _is_plain(name: str, x: Any) -> bool:
    """Whether something in the wheel is a type of NumPy, or a number, that needs no device."""
    if name.startswith("_") or issubclass(type(x), ModuleType):  # some of which load themselves when looked at
        return False
    return (
        isinstance(x, float | str) or x is None or (isinstance(x, type) and x.__module__.partition(".")[0] == "numpy")
    )


def _module(name: str, contents: dict[str, Any]) -> ModuleType:
    module = ModuleType(name, "A test double over NumPy.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=name in ("cupy", "cupy.cuda"))
    vars(module).update(contents)
    module.__path__ = []
    return module
