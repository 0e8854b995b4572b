"""How close is close, and assertions that know namespace, dtype, shape and device."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from array_api_extra.testing import assert_close as xpx_assert_close, assert_equal as xpx_assert_equal

from tests._backends import Backend, to_numpy

_TOLERANCES = {
    "float64": {"rtol": 1e-10, "atol": 1e-12},
    "float32": {"rtol": 2e-5, "atol": 1e-5},
    "float16": {"rtol": 2e-3, "atol": 1e-3},
    "bfloat16": {"rtol": 1.6e-2, "atol": 8e-3},
}


def tolerance(dtype: Any) -> dict[str, float]:
    """Return ``rtol`` and ``atol`` for results of a dtype, given by name or as an object."""
    return _TOLERANCES[dtype_name(dtype)]


def dtype_name(dtype: Any) -> str:
    """Return the bare name of a dtype of any library."""
    return str(dtype).removesuffix("'>").rpartition(".")[2]


def assert_close(actual: Any, expected: Any, library: Backend, *, dtype: str = "float32", **tolerances: float) -> None:
    """Compare a result with NumPy numbers; its library, device and dtype must be those of the test."""
    # Masked out rows are exact: infinities and NaN have to be where they are expected.
    desired = library.array(expected, dtype)
    if dtype in ("float16", "bfloat16"):
        assert dtype_name(actual.dtype) == dtype, f"dtypes do not match: {actual.dtype} != {dtype}"
        assert array_namespace(actual) == library.namespace()
        assert device(actual) == device(desired)
        assert tuple(actual.shape) == tuple(desired.shape)
        np.testing.assert_allclose(to_numpy(actual), to_numpy(desired), **(tolerance(dtype) | tolerances))
        return
    xpx_assert_close(actual, desired, xp=library.namespace(), **(tolerance(dtype) | tolerances))


def assert_equal(actual: Any, expected: Any, library: Backend, *, dtype: str | None = None) -> None:
    """Compare a result with NumPy values exactly, with library, device and dtype."""
    xpx_assert_equal(actual, library.array(expected, dtype), xp=library.namespace())
