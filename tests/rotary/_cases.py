"""Rotary position embeddings by complex numbers, in float64, and what transformers says of frequencies."""

from typing import Any

import numpy as np
import pytest


def frequencies(rotary_dim: int, base: float = 10000.0) -> np.ndarray:
    """The angles per position, fastest first."""
    return base ** (-2.0 * np.arange(rotary_dim // 2) / rotary_dim)


def rotated(x: np.ndarray, angles: np.ndarray, interleaved: bool = False, amplitude: float = 1.0) -> np.ndarray:
    """Multiply each pair of features as a complex number; angles broadcast to (..., S, rotary_dim / 2)."""
    pairs = angles.shape[-1]
    first = np.arange(pairs) * 2 if interleaved else np.arange(pairs)
    second = first + 1 if interleaved else first + pairs
    z = (x[..., first] + 1j * x[..., second]) * amplitude * np.exp(1j * angles)
    y = x.copy()
    y[..., first], y[..., second] = z.real, z.imag
    return y


def over_heads(angles: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Insert the axis of the heads where there are batch axes."""
    return np.expand_dims(angles, -3) if angles.ndim > 2 and x.ndim > 3 else angles


def rope_types() -> set[str]:
    """The scalings of transformers, which computes them with torch; each model has the default one of its own."""
    pytest.importorskip("torch")
    return {"default", *pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS}


def theirs(
    rope: dict[str, Any], length: int, max_positions: int = 128, original_positions: int | None = None
) -> tuple[np.ndarray, float]:
    """Frequencies of rotary width 16 and base 100, and the factor of cosines and sines, from transformers.

    Some configurations hold the number of positions before scaling beside the scaling.
    """
    pytest.importorskip("torch")
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=max_positions,
        rope_parameters={"rope_theta": 100.0, **rope},
    )  # fmt: skip
    if original_positions is not None:
        config.original_max_position_embeddings = original_positions
    own = {"default": llama.LlamaRotaryEmbedding.compute_default_rope_parameters}
    found, factor = (own | utils.ROPE_INIT_FUNCTIONS)[rope["rope_type"]](config, device="cpu", seq_len=length)
    return np.asarray(found, dtype=np.float64), factor
