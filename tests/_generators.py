"""Sources of randomness of every library."""

import importlib
from typing import Any

import numpy as np

from tests._backends import Backend

KINDS = ("int", "generator", "key", "raw key")


def source(library: Backend, kind: str, seed: int = 3) -> Any:
    """A fresh source of randomness of a kind, or ``None`` where the library has no such kind."""
    if kind == "int":
        return seed
    if kind == "generator":
        return _generator(library, seed)
    if not library.like("jax"):
        return None
    random = importlib.import_module("jax").random
    return random.key(seed) if kind == "key" else random.PRNGKey(seed)


def _generator(library: Backend, seed: int) -> Any:
    if library.like("numpy"):
        return np.random.default_rng(seed)
    if library.like("cupy"):
        return importlib.import_module("cupy").random.default_rng(seed)
    if library.like("torch"):
        return importlib.import_module("torch").Generator(device=library.device()).manual_seed(seed)
    return None
