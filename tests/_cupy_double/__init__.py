"""A test double of CuPy: the rules of its arrays over NumPy's numbers, for machines without a GPU.

The wheel installs and imports without a GPU, and fails when memory is asked for. Its names and signatures are read from
it, so the double offers nothing that the wheel does not; what is computed is computed by NumPy. Its arrays mix with
those of no other library, convert themselves to nothing, and come out of reductions and indexing with no axis as arrays.

Not emulated: streams, the exchange of memory (DLPack and CUDA's array interface) and kernels written in CUDA.
"""

import functools
import importlib
import sys
from types import ModuleType

__all__ = ["emulates", "install", "wheel"]

_WHEEL: dict[str, ModuleType] = {}  # the modules of the wheel by name


def install() -> None:
    """Put the double where ``import cupy`` finds it, once; the wheel has to be installed."""
    if _WHEEL:
        return
    importlib.import_module("cupy")
    _WHEEL.update({name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "cupy"})
    from tests._cupy_double._modules import modules  # noqa: PLC0415  # reads the wheel

    sys.modules.update(modules(wheel()))


def wheel(name: str = "cupy") -> ModuleType:
    """Return a module of the real package, whose functions ask for a GPU as soon as they are called."""
    return functools.reduce(getattr, name.split(".")[1:], _WHEEL["cupy"])


def emulates(package: str) -> bool:
    """Whether a package is the double and no library."""
    return package == "cupy" and len(_WHEEL) > 0
