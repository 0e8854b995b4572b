"""The double's array: numbers of NumPy, behind the attributes and methods of CuPy's."""

import importlib
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests._cupy_double._values import SCALARS, computed, host, operand, renamed, signature_of, wrapped

__all__ = ["give_methods", "ndarray"]

_ATTRIBUTES = ("dtype", "shape", "ndim", "size", "itemsize", "nbytes", "strides")
_VIEWS = ("T", "mT", "real", "imag")
_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "lshift": "left_shift", "rshift": "right_shift", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor", "matmul": "matmul", "divmod": "divmod",
}  # fmt: skip
_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}
_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def _cupy(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module("cupy"), name)  # type: ignore[no-any-return]


class _Flags(NamedTuple):
    """How numbers lie in memory; whether they may be written to is no question."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool

    def __getitem__(self, name: str) -> bool:  # type: ignore[override]
        return bool(getattr(self, name.lower()))


class ndarray:  # noqa: N801  # as it is called
    """Numbers on a device, which is none."""

    __slots__ = ("_host", "base")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    _host: np.ndarray[Any, Any]

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        if memptr is not None or strides is not None:
            raise NotImplementedError("the double has no memory of a device")
        self._host, self.base = np.empty(shape, dtype, order), None  # type: ignore[call-overload]

    @classmethod
    def _of(cls, array: np.ndarray) -> "ndarray":
        made = object.__new__(cls)
        made._host, made.base = array, None
        return made

    @property
    def flags(self) -> Any:
        """How the numbers lie in memory."""
        return _Flags(self._host.flags.c_contiguous, self._host.flags.f_contiguous, self._host.flags.owndata)

    @property
    def device(self) -> Any:
        """The device, of which there is one."""
        return importlib.import_module("cupy").cuda.Device(0)

    def __array__(self, dtype: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        own = getattr(importlib.import_module("cupy"), ufunc.__name__, None)
        return NotImplemented if own is None or method != "__call__" else own(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        module = importlib.import_module("cupy")
        for part in func.__module__.split(".")[1:]:
            module = getattr(module, part, None)  # type: ignore[assignment]
        own = getattr(module, func.__name__, None)
        if own is None or not all(issubclass(t, ndarray | np.ndarray) for t in types):
            return NotImplemented
        return own(*args, **kwargs)

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("the double has no memory of a device to exchange")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0  # the first CUDA device

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self._host)))

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __repr__(self) -> str:
        return repr(self._host)

    def __str__(self) -> str:
        return str(self._host)

    def __format__(self, how: str) -> str:
        return format(self._host, how)

    def __copy__(self) -> "ndarray":
        return self._of(self._host.copy())

    def __deepcopy__(self, memo: Any) -> "ndarray":
        return self.__copy__()

    def __reduce__(self) -> Any:
        return _restored, (self._host,)

    def __getitem__(self, slices: Any) -> Any:
        found = self._host[_index(slices)]
        if isinstance(found, np.generic):  # a view without an axis
            slices = slices if isinstance(slices, tuple) else (slices,)
            found = self._host[(*_index(slices), ...)]
        return wrapped(found)

    def __setitem__(self, slices: Any, value: Any) -> None:
        with np.errstate(all="ignore"):
            self._host[_index(slices)] = operand(value)

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> "ndarray":
        """Return the numbers in another dtype."""
        if not copy and self.dtype == np.dtype(dtype):
            return self
        with np.errstate(all="ignore"):
            return self._of(self._host.astype(dtype, order=order))  # type: ignore[call-overload]

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """Return a copy in NumPy."""
        if out is None:
            return np.array(self._host, order=order)  # type: ignore[call-overload]
        out[...] = self._host
        return out  # type: ignore[no-any-return]

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Copy an array of NumPy here."""
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError("dtype or shape mismatch")
        self._host[...] = arr

    def item(self) -> Any:
        """Return the one number of the array."""
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self._host.item()

    def tolist(self) -> Any:
        """Return lists of numbers."""
        return self._host.tolist()

    def view(self, dtype: Any = None, type: Any = None) -> "ndarray":  # noqa: A002
        """Return the same memory, as another dtype."""
        return self._of(self._host.view() if dtype is None else self._host.view(dtype))


def _restored(host: Any) -> ndarray:
    return _cupy("array")(host)  # type: ignore[no-any-return]


def _index(slices: Any) -> Any:
    """Return an index of NumPy; of the bounds of slices, as everywhere, only what is an int for Python."""
    for part in slices if isinstance(slices, tuple) else (slices,):
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else ()
        if any(isinstance(bound, ndarray) for bound in bounds):
            raise TypeError("slice indices must be integers or None or have an __index__ method")
    if isinstance(slices, np.ndarray):  # which CuPy copies to the device
        return slices
    return (
        tuple(s if isinstance(s, np.ndarray) else host(s) for s in slices)
        if isinstance(slices, tuple)
        else host(slices)
    )


def _with(name: str, x: Any, y: Any, out: Any = None) -> Any:
    """Compute an operator as CuPy does, which leaves it to the other where that is of a library with more to say."""
    others = [z for z in (x, y) if not isinstance(z, (ndarray, *SCALARS))]
    if others and _has_more_to_say(others[0]):
        return NotImplemented
    return _cupy(name)(x, y, **({} if out is None else {"out": out}))


def _has_more_to_say(other: Any) -> bool:
    if hasattr(other, "__array_ufunc__"):
        return other.__array_ufunc__ is None
    return bool(getattr(other, "__array_priority__", 0) > 100)


def _give_operators(names: set[str]) -> None:
    for short, name in (_OPERATORS | _COMPARISONS).items():
        made = {
            f"__{short}__": lambda x, y, name=name: _with(name, x, y),
            f"__r{short}__": lambda x, y, name=name: _with(name, y, x),
            f"__i{short}__": lambda x, y, name=name: _with(name, x, y, out=x),
        }
        for method, function in made.items():
            if method in names:
                setattr(ndarray, method, function)
    for short, name in _UNARY.items():
        setattr(ndarray, f"__{short}__", lambda x, name=name: _cupy(name)(x))


def _method(name: str, real: Any) -> Callable[..., Any] | None:
    """Return NumPy's method with the signature of CuPy's."""
    signature = signature_of(real)
    counterpart = getattr(np.ndarray, name, None)
    if signature is None or not callable(counterpart):
        return None

    def call(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        signature.bind(self, *args, **kwargs)
        return computed(counterpart, self, *args, **kwargs)

    return renamed(call, real, signature)


def give_methods(real: type) -> None:
    """Give the array what the real one has and NumPy computes."""
    for name in _ATTRIBUTES:
        setattr(ndarray, name, property(operator.attrgetter(f"_host.{name}")))
    for name in _VIEWS:
        setattr(ndarray, name, property(lambda self, name=name: wrapped(getattr(self._host, name))))
    _give_operators(set(dir(real)))
    for name in dir(real):
        if not name.startswith("_") and name not in vars(ndarray) and (made := _method(name, getattr(real, name))):
            setattr(ndarray, name, made)
