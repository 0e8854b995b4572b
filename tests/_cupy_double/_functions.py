"""Functions with the names and signatures of CuPy's, computed by NumPy."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tests._cupy_double._array import ndarray
from tests._cupy_double._values import SCALARS, computed, host, operand, renamed, signature_of, wrapped

__all__ = ["Ufunc", "functions"]

_ONLY_ARRAYS = {"a", "x", "x1", "a1", "m", "arr", "ary", "array"}  # parameters that take no list, nor a number
_FREE = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray", "copy", "size", "shape", "ndim"}
_FREE |= {"isscalar", "nan_to_num", "isclose", "allclose", "array_equal", "full_like", "tri", "asnumpy"}
_AS_ARRAYS = {"allclose", "array_equal", "array_equiv"}  # where NumPy returns a bool


class Ufunc:
    """An elementwise function: no ``where``, and the dtypes that CuPy has loops for."""

    def __init__(self, name: str, real: Any) -> None:
        self.__name__, self.__doc__ = name, real.__doc__
        self.name, self.nin, self.nout, self.nargs, self.types = real.name, real.nin, real.nout, real.nargs, real.types
        self._numpy = getattr(np, name)
        self._loops = [loop.split("->") for loop in real.types if "E" not in loop]  # NumPy has no bfloat16

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the function of each number."""
        wrong = kwargs.keys() - {"out", "dtype", "casting"}
        if wrong:
            raise TypeError(f"Wrong arguments { ({name: kwargs[name] for name in wrong}) }")
        if len(args) not in (self.nin, self.nargs):
            raise TypeError(f"{self.name}() takes {self.nin} or {self.nargs} arguments, got {len(args)}")
        given = [operand(x) for x in args]
        how = {name: x for name, x in kwargs.items() if x is not None}
        if not how and len(args) == self.nin:
            how = self._how(given)
        return computed(self._numpy, *args, **how)

    def _how(self, given: list[Any]) -> dict[str, Any]:
        """Return in which dtype NumPy has to compute so that the result has that of CuPy's first loop that fits."""
        kinds = [type(x) if type(x) in (int, float, complex) else np.asarray(x).dtype for x in given]
        common = np.result_type(*(kind(0) if isinstance(kind, type) else kind for kind in kinds))
        wide = [common if isinstance(kind, type) else kind for kind in kinds]
        for inputs, outputs in self._loops:
            if all(np.can_cast(kind, np.dtype(char)) for kind, char in zip(wide, inputs, strict=True)):
                is_same = (
                    not isinstance(self._numpy, np.ufunc) or f"{common.char * self.nin}->{outputs}" in self._numpy.types
                )
                return {} if is_same or outputs == "?" else {"dtype": np.dtype(outputs[0])}
        raise TypeError(f"Wrong type ({kinds}) of arguments for {self.name}")

    def __repr__(self) -> str:
        """Show the name, as CuPy does."""
        return f"<ufunc '{self.name}'>"


def functions(real: ModuleType, numpy_module: ModuleType) -> dict[str, Any]:
    """Return for every function of a module of the wheel that NumPy has as well one that computes the same."""
    made: dict[str, Any] = {}
    for name, function in vars(real).items():
        # Some modules load themselves when they are looked at.
        if name.startswith("_") or issubclass(type(function), type | ModuleType) or not callable(function):
            continue
        counterpart = getattr(numpy_module, name, None)
        if type(function).__name__ == "ufunc" and counterpart is not None:
            made[name] = Ufunc(name, function)
        elif name in _OWN:
            signature = signature_of(function)
            made[name] = renamed(_bound(_OWN[name], signature), function, signature)
        elif callable(counterpart) and (signature := signature_of(function)) is not None:
            made[name] = renamed(_emulated(name, counterpart, signature), function, signature)
    return made


def _bound(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        return function(*bound.args, **bound.kwargs)

    return call


def _emulated(name: str, counterpart: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Return NumPy's function with CuPy's signature, which takes arrays of the double."""

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        if name not in _FREE:
            for parameter in _ONLY_ARRAYS & bound.arguments.keys():
                if not isinstance(bound.arguments[parameter], ndarray):
                    raise TypeError(f"Unsupported type {type(bound.arguments[parameter])}")
        found = computed(counterpart, *bound.args, **bound.kwargs)
        return wrapped(np.asarray(found)) if name in _AS_ARRAYS else found

    return call


def _array(obj: Any, dtype: Any = None, copy: Any = True, *_: Any, ndmin: int = 0, **__: Any) -> ndarray:
    """Copy numbers, or an array of NumPy, to the device: the one way there."""
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype, copy=bool(copy))
    if isinstance(obj, list | tuple):
        obj = host(obj)
    elif not isinstance(obj, (np.ndarray, *SCALARS)):
        raise TypeError(f"Unsupported type {type(obj)}")
    made = np.array(obj, dtype=dtype, ndmin=ndmin)
    if made.dtype.kind not in "biufcV":
        raise ValueError(f"Unsupported dtype {made.dtype}")
    return ndarray._of(made)


def _asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, **_: Any) -> ndarray:
    return _array(a, dtype, copy=bool(copy))


def _take(a: ndarray, indices: Any, axis: int | None = None, out: Any = None) -> Any:
    return computed(np.take, a, indices, axis, mode="wrap")  # out of bounds is no error on a GPU


def _where(condition: Any, x: Any = None, y: Any = None) -> Any:
    given = [i for i in (condition, x, y) if i is not None]
    for i in given:
        operand(i)
    return computed(np.where, *given)


def _matmul(a: Any, b: Any, *, out: Any = None) -> Any:
    for x in (a, b):
        if not isinstance(x, ndarray):
            raise TypeError(f"Unsupported type {type(x)}")
    return computed(np.matmul, a, b, **({} if out is None else {"out": out}))


def _joined(function: Callable[..., Any]) -> Callable[..., Any]:
    def join(tup: Any, axis: Any = 0, out: Any = None, **how: Any) -> Any:
        if not all(isinstance(x, ndarray) for x in tup):
            raise TypeError("Only cupy arrays can be concatenated")
        return computed(function, list(tup), axis, **how)

    return join


_OWN: dict[str, Callable[..., Any]] = {
    "array": _array,
    "asarray": _asarray,
    "asanyarray": _asarray,
    "asnumpy": lambda a, *_, **__: a.get() if isinstance(a, ndarray) else np.asarray(a),
    "take": _take,
    "where": _where,
    "concatenate": _joined(np.concatenate),
    "stack": _joined(np.stack),
    "matmul": _matmul,
}
