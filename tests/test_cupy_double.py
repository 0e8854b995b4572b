"""The double of CuPy: it has nothing that the wheel does not have, and the rules that CuPy documents.

The rules are asked of CuPy itself where there is a GPU.
"""

import importlib
import inspect
import operator
import pickle

import numpy as np
import pytest

from tests import _cupy_double
from tests._cupy_double._values import signature_of

pytestmark = pytest.mark.backends("cupy")

MODULES = ["cupy", "cupy.linalg", "cupy.fft", "cupy.random", "cupy.cuda", "cupy.cuda.runtime"]
CLASSES = [("cupy", "ndarray"), ("cupy.random", "Generator"), ("cupy.cuda", "Device"), ("cupy.cuda", "Stream")]


@pytest.fixture
def cp(library):
    """CuPy, or its double."""
    return importlib.import_module("cupy")


@pytest.fixture
def wheel(library):
    """The modules of the wheel, where the double stands in for them."""
    if not library.is_emulated():
        pytest.skip("CuPy itself is tested here")
    return _cupy_double.wheel


def public(thing):
    """The names that are no secret."""
    return {name for name in vars(thing) if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_one_of_the_wheel(wheel, name):
    module = importlib.import_module(name)
    assert public(module) - set(dir(wheel(name))) == set()
    assert module is not wheel(name)


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_every_method_is_one_of_the_wheel(wheel, module, name):
    double, real = getattr(importlib.import_module(module), name), getattr(wheel(module), name)
    assert public(double) - {"ptr", "device_id"} - set(dir(real)) == set()
    special = {n for n in vars(double) if n.startswith("__")} - {
        "__annotations__",
        "__dict__",
        "__weakref__",
        "__module__",
    }
    assert special - {"__int__", "__enter__", "__exit__", "__array_priority__"} - set(dir(real)) == set()


@pytest.mark.parametrize("name", MODULES[:3])
def test_every_function_has_the_signature_of_the_wheel(wheel, name):
    compared = 0
    for own in public(importlib.import_module(name)):
        function, real = getattr(importlib.import_module(name), own), getattr(wheel(name), own)
        if inspect.isfunction(function) and inspect.isfunction(real):
            assert inspect.signature(function) == inspect.signature(real), own
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("name", ["astype", "get", "item", "set", "tolist", "view"])
def test_methods_that_are_written_out_take_what_those_of_the_wheel_take(wheel, name):
    own, real = (signature_of(getattr(module.ndarray, name)) for module in (importlib.import_module("cupy"), wheel()))
    assert list(own.parameters) == list(real.parameters)


def test_elementwise_functions_have_the_loops_of_the_wheel(wheel):
    cp = importlib.import_module("cupy")
    for name in ("add", "exp", "maximum", "left_shift", "less_equal"):
        assert getattr(cp, name).types == getattr(wheel(), name).types


REFUSED = {
    "NumPy on the right": (lambda cp, x: x + np.ones(3), TypeError, "Unsupported type <class 'numpy.ndarray'>"),
    "NumPy on the left": (lambda cp, x: np.ones(3) + x, TypeError, "Unsupported type <class 'numpy.ndarray'>"),
    "NumPy in a function": (lambda cp, x: cp.exp(np.ones(3)), TypeError, "Unsupported type <class 'numpy.ndarray'>"),
    "NumPy in a choice": (lambda cp, x: cp.where(x > 1, x, np.ones(3)), TypeError, "Unsupported type"),
    "NumPy beside an array": (lambda cp, x: cp.concatenate([x, np.ones(3)]), TypeError, "Only cupy arrays"),
    "a list": (lambda cp, x: cp.add(x, [1.0, 2.0, 3.0]), TypeError, "Unsupported type <class 'list'>"),
    "None": (lambda cp, x: x + None, TypeError, "Unsupported type <class 'NoneType'>"),
    "a conversion": (lambda cp, x: np.asarray(x), TypeError, "Implicit conversion to a NumPy array is not allowed"),
    "where of a reduction": (lambda cp, x: cp.sum(x, where=x > 1), TypeError, "where"),
    "where of a function": (lambda cp, x: cp.add(x, x, where=x > 1), TypeError, "Wrong arguments"),
    "initial": (lambda cp, x: x.max(initial=0.0), TypeError, "initial"),
    "an index for Python": (lambda cp, x: operator.index(cp.asarray(1)), TypeError, "integer"),
    "the bound of a slice": (lambda cp, x: x[: cp.asarray(1)], TypeError, "slice indices must be integers"),
    "the truth of many": (lambda cp, x: bool(x), ValueError, "ambiguous"),
    "a number of many": (lambda cp, x: x.item(), ValueError, "size 1"),
    "the namespace": (lambda cp, x: x.__array_namespace__(), AttributeError, "__array_namespace__"),
    "a move": (lambda cp, x: x.to_device("cpu"), AttributeError, "to_device"),
    "an attribute": (lambda cp, x: setattr(x, "more", 1), AttributeError, "more"),
    "a shift of floats": (lambda cp, x: x << x, TypeError, "cupy_left_shift"),
}


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(cp, call, kind, text):
    x = cp.asarray(np.asarray([1.0, 2.0, 3.0], np.float32))
    with pytest.raises(kind, match=text):
        call(cp, x)


def test_results_without_an_axis_are_arrays(cp):
    x = cp.asarray(np.asarray([1.0, 2.0, 3.0], np.float32))
    for found in (x.sum(), cp.max(x), x[0], x @ x, cp.allclose(x, x), next(iter(x))):
        assert type(found) is cp.ndarray
        assert found.shape == ()
    assert float(x.sum()) == 6.0
    assert type(x.sum().item()) is float


def test_what_numpy_is_asked_comes_back_on_the_device(cp):
    x = cp.asarray(np.asarray([1.0, 2.0], np.float32))
    for found in (np.exp(x), np.sum(x), np.stack([x, x]), np.float32(2.0) * x):
        assert type(found) is cp.ndarray
        assert found.dtype == np.float32


def test_numbers_go_to_the_device_and_back_as_copies(cp):
    there = np.asarray([1.0, 2.0])
    x = cp.asarray(there)
    there[0] = 5.0
    back = x.get()
    back[1] = 7.0
    np.testing.assert_array_equal(cp.asnumpy(x), [1.0, 2.0])
    assert cp.asarray(x) is x
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(x)).get(), x.get())


def test_views_share_memory(cp):
    x = cp.zeros((2, 3), dtype=cp.float32)
    x[0][...] = 1.0
    x[1, 2][...] = 2.0
    x.mT[0] += 1.0
    np.testing.assert_array_equal(x.get(), [[2.0, 1.0, 1.0], [1.0, 0.0, 2.0]])


def test_an_index_out_of_bounds_is_no_error(cp):
    x = cp.arange(4)
    np.testing.assert_array_equal(cp.take(x, cp.asarray([-1, 5])).get(), [3, 1])


def test_numbers_of_python_do_not_widen(cp):
    x = cp.ones(2, dtype=cp.float16)
    assert (x * 2.0).dtype == cp.where(x > 0, x, 0.0).dtype == cp.exp(x).dtype == np.float16
    assert (cp.ones(2, dtype=cp.int8) + 1).dtype == np.int8
    assert (x * cp.asarray(2.0, dtype=cp.float32)).dtype == np.float32


def test_a_generator_draws_on_the_device(cp):
    draws = cp.random.default_rng(3).integers(0, 9, size=5)
    assert type(draws) is cp.ndarray
    assert draws.shape == (5,)
