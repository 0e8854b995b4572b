"""The libraries as users import them, without the compatibility layer."""

import importlib
from types import ModuleType

from tests._backends import Backend


def raw_namespace(library: Backend) -> ModuleType:
    """``torch`` itself, ``jax.numpy``, and so on."""
    library.namespace()  # configured for tests
    return importlib.import_module("jax.numpy" if library.like("jax") else library.package)
