"""Rotary position embeddings by complex numbers, in float64, and what transformers says of frequencies."""

from types import ModuleType, SimpleNamespace
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


def rope_utils() -> ModuleType:
    """The frequencies of transformers, which computes them with torch."""
    pytest.importorskip("torch")
    return pytest.importorskip("transformers.modeling_rope_utils")


def config(rotary_dim: int, base: float, max_positions: int, **rope: Any) -> SimpleNamespace:
    """The part of a model's configuration that decides its frequencies."""
    return SimpleNamespace(
        rope_theta=base, head_dim=rotary_dim, hidden_size=4 * rotary_dim, num_attention_heads=4,
        partial_rotary_factor=1.0, max_position_embeddings=max_positions, rope_scaling=rope,
    )  # fmt: skip
