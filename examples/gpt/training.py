"""What happens to a model, whichever library it is in: it is opened, it learns, it writes."""

import importlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from gpt.text import Text
from gpt.weights import Array, Config, Weights

BACKENDS = ("numpy", "torch", "jax")


class Model(Protocol):
    """What the three models can do, with NumPy arrays in and out."""

    def step(self, ids: Array, targets: Array) -> float: ...
    def logits(self, ids: Array) -> Array: ...


def open_model(backend: str, weights: Weights, config: Config) -> Model:
    """Return the model in a library, or end with a line that says why not."""
    try:
        return importlib.import_module(f"gpt.in_{backend}").Model(weights, config)
    except ImportError as error:
        raise SystemExit(f"error: {backend} cannot be used: {error}") from None


def train(model: Model, text: Text, config: Config, steps: int, seed: int) -> Iterator[float]:
    """Yield the loss of each step; the same seed gives the same batches."""
    batches = text.batches(config, seed)
    for _ in range(steps):
        yield model.step(*next(batches))


def write(
    model: Model, text: Text, config: Config, prompt: str, count: int, temperature: float, seed: int
) -> Iterator[str]:
    """Yield the characters that the model puts after the prompt, one by one."""
    rng = np.random.default_rng(seed)
    ids = list(text.encode(prompt))
    for _ in range(count):
        seen = ids[-config.context :]
        # Nothing on the right of a character reaches it, so that the window may be filled up there: JAX compiles once.
        window = np.asarray([seen + [0] * (config.context - len(seen))], np.int64)  # (1, S)
        logits = model.logits(window)[0, len(seen) - 1]  # (1, S, V) -> (V,)
        # The largest of logits plus Gumbel noise is a draw from their softmax (Gumbel, 1954).
        ids.append(int(np.argmax(logits / temperature + rng.gumbel(size=logits.shape))))
        yield text.decode(ids[-1:])
