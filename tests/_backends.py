"""The array libraries that the suite runs on, and how to make arrays of each."""

import importlib
import importlib.util
import os
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests import _cupy_double

NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "strict": "array_api_strict",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "cupy": "array_api_compat.cupy",
}


class Backend(Enum):
    """One array library on one kind of device; the value is the test id."""

    NUMPY = "numpy"
    NUMPY_READONLY = "numpy:readonly"
    STRICT = "strict"
    TORCH = "torch"
    JAX = "jax"
    CUPY = "cupy"
    TORCH_GPU = "torch:gpu"
    JAX_GPU = "jax:gpu"

    @property
    def library(self) -> str:
        """The library without its variant: ``torch`` for ``torch:gpu``."""
        return self.value.partition(":")[0]

    @property
    def package(self) -> str:
        """The name under which the library is imported."""
        return "array_api_strict" if self is Backend.STRICT else self.library

    @property
    def needs_gpu(self) -> bool:
        """Whether the backend can do nothing without a CUDA device."""
        return self is Backend.CUPY or self.value.endswith(":gpu")

    def like(self, *libraries: str) -> bool:
        """Whether this is one of the libraries, on whatever device."""
        return self.value in libraries or self.library in libraries

    def pytest_param(self) -> Any:
        """This backend as a parameter of a test."""
        return pytest.param(self, id=self.value)

    def is_installed(self) -> bool:
        """Whether the package can be found; nothing is imported."""
        return importlib.util.find_spec(self.package) is not None

    def has_device(self) -> bool:
        """Whether the device that the backend needs is there, or a double stands in for it."""
        return not self.needs_gpu or self.is_emulated() or _has_gpu(self.library)

    def is_emulated(self) -> bool:
        """Whether a double stands in for the library."""
        return _cupy_double.emulates(self.package)

    def namespace(self) -> ModuleType:
        """The array API namespace of the library, configured for tests."""
        return _namespace(self.library)

    def device(self) -> Any:
        """The device of every array of a test: for strict one that is not the default."""
        if self is Backend.STRICT:
            return self.namespace().Device("device1")
        if self.library == "torch":
            return importlib.import_module("torch").device("cuda:0" if self.needs_gpu else "cpu")
        if self.library == "jax":
            return importlib.import_module("jax").devices("gpu" if self.needs_gpu else "cpu")[0]
        return importlib.import_module("cupy").cuda.Device() if self is Backend.CUPY else "cpu"

    def dtypes(self) -> tuple[str, ...]:
        """The names of the floating dtypes that the backend computes with."""
        if self is Backend.STRICT:
            return ("float32", "float64")
        if self.library in ("numpy", "cupy"):
            return ("float16", "float32", "float64")
        if self.library == "jax" and not _has_x64():
            return ("float16", "bfloat16", "float32")
        return ("float16", "bfloat16", "float32", "float64")

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """An array on the device of the backend; plain floats become float32, plain ints int32."""
        values = np.asarray(values)
        narrow = {"float64": "float32", "int64": "int32"}.get(str(values.dtype), str(values.dtype))
        xp = self.namespace()
        dtype = getattr(xp, dtype or narrow)
        if self.library == "jax":  # to convert there would compile a program for each shape
            return importlib.import_module("jax").device_put(values.astype(np.dtype(dtype)), self.device())
        made = xp.astype(xp.asarray(values.copy(), device=self.device()), dtype, copy=False)
        if self is Backend.NUMPY_READONLY:
            made.flags.writeable = False
        return made


def to_numpy(x: Any) -> np.ndarray:
    """The values of an array of any library, 16-bit floats as float32."""
    if type(x).__module__.startswith("torch"):
        x = x.detach().cpu()
        return (x.float() if x.element_size() == 2 and x.is_floating_point() else x).numpy()
    if hasattr(x, "get"):  # CuPy
        x = x.get()
    if type(x).__module__.startswith("array_api_strict"):
        x = x.to_device(importlib.import_module("array_api_strict").Device("CPU_DEVICE"))
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind in "fV" else x


@cache
def _namespace(library: str) -> ModuleType:
    if library == "jax":
        jax = importlib.import_module("jax")
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
        jax.config.update("jax_debug_nans", True)
        jax.config.update("jax_default_matmul_precision", "float32")
    if library == "torch":
        importlib.import_module("torch").set_float32_matmul_precision("highest")
    if library == "cupy":
        os.environ["CUPY_TF32"] = "0"
    return importlib.import_module(NAMESPACES[library])


@cache
def _has_gpu(library: str) -> bool:
    try:
        if library == "jax":
            return bool(importlib.import_module("jax").devices("gpu"))
        return bool(importlib.import_module(library).cuda.is_available())
    except Exception:  # noqa: BLE001  # each driver fails in a way of its own
        return False


def _has_x64() -> bool:
    return bool(importlib.import_module("jax").config.jax_enable_x64)
