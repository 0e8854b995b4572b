"""Arrays of any library as arrays of NumPy, for pictures and for counting: never on the way of a computation."""

from typing import Any

from attention_xp._backend.derivatives import constant
from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.libraries import common_namespace, library_name
from attention_xp._typing import Array

__all__ = ["as_numpy"]


def as_numpy(array: Array) -> Any:
    """Return the values of an array as NumPy has them, bfloat16 as float32; on a GPU this waits for them."""
    import numpy as np  # noqa: PLC0415  # the import of the package loads no array library
    from array_api_compat import to_device  # noqa: PLC0415

    xp = common_namespace(array=array)
    array = constant(xp, array)
    if dtype_name(array.dtype) == "bfloat16":
        array = xp.astype(array, xp.float32)
    if library_name(xp) in ("torch", "cupy"):
        array = to_device(array, "cpu")
    elif library_name(xp) == "strict":
        array = to_device(array, xp.__array_namespace_info__().default_device())
    return np.asarray(array)
