"""What the libraries make of a function: a compiled one, and one that is mapped; and whether it is the same."""

import importlib

import numpy as np

from tests._backends import to_numpy

__all__ = ["assert_same", "compiled_and_mapped", "mapped", "one_by_one", "results"]


def compiled_and_mapped(library, function):
    """Return a function compiled as a whole, and mapped over the first axis of its arguments, on torch and JAX."""
    if library.like("jax"):
        jax = importlib.import_module("jax")
        return jax.jit(function), jax.vmap(function)
    torch = importlib.import_module("torch")
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="eager"), torch.func.vmap(function)


def results(outcome):
    """A result, or several, as NumPy arrays."""
    return [to_numpy(x) for x in (outcome if isinstance(outcome, tuple) else (outcome,))]


def assert_same(actual, expected):
    """Compare results of two ways to call a function."""
    for one, other in zip(results(actual), results(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def mapped(library, arguments):
    """Three different versions of each argument, stacked along a new first axis."""
    # What is infinite excludes, and stays as it is.
    versions = [
        np.stack([np.where(np.isfinite(x), x * factor, x) if x.dtype.kind == "f" else x for factor in (1.0, 0.5, -2.0)])
        for x in arguments
    ]
    return [library.array(x) for x in versions]


def one_by_one(function, stacked):
    """Call a function for every version by itself."""
    outcomes = [results(function(*(x[i] for x in stacked))) for i in range(3)]
    return tuple(np.stack(parts) for parts in zip(*outcomes, strict=True))
