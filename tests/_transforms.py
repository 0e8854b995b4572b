"""What the libraries make of a function: a compiled one, and one that is mapped."""

import importlib


def compiled_and_mapped(library, function):
    """Return a function compiled as a whole, and mapped over the first axis of its arguments, on torch and JAX."""
    if library.like("jax"):
        jax = importlib.import_module("jax")
        return jax.jit(function), jax.vmap(function)
    torch = importlib.import_module("torch")
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="eager"), torch.func.vmap(function)
