"""Attention weights as pictures take them: those of one batch item, on the host."""

from typing import Any

import numpy as np

from attention_xp._backend.host import as_numpy
from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, shapes
from attention_xp._checks.numbers import check_int
from attention_xp._typing import Array

__all__ = ["check_index", "weights_of_heads", "weights_of_layers"]


def weights_of_heads(weights: Array, name: str = "weights", layers: str = "") -> Any:
    """Return the weights of one batch item, (H, Sq, Sk), as an array of NumPy; H is 1 without a heads axis.

    `layers` is what an error adds about an array whose first axis may be that of layers.
    """
    xp = common_namespace(**{name: weights})
    check_floating(xp, **{name: weights})
    shape = tuple(weights.shape)
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(
            f"{name} must have 2 to 4 axes, none of length 0: expected {name} (1, H, Sq, Sk), (1, Sq, Sk) or (Sq, Sk), "
            f"{shapes(**{name: weights})}"
        )
    if len(shape) > 2 and shape[0] != 1:
        remedy = f"{name}[i:i + 1] has those of one" + (f", {name}[None] has heads" if len(shape) == 3 else layers)
        raise ValueError(
            f"{name} has {shape[0]} batch items: expected one, {name} (1, H, Sq, Sk), (1, Sq, Sk) or (Sq, Sk), "
            f"{shapes(**{name: weights})}; {remedy}"
        )
    heads = shape[1] if len(shape) == 4 else 1
    values = np.asarray(as_numpy(weights), dtype=np.float32).reshape(heads, *shape[-2:])
    if not (np.isfinite(values).all() and values.min() >= 0.0):
        raise ValueError(f"{name} must be finite and not negative, as a softmax gives them")
    return values


def weights_of_layers(weights: Any) -> list[Any]:
    """Return the weights of each layer, (H, Sq, Sk), from those of one layer or a list of them, all of one shape."""
    if not isinstance(weights, list | tuple):
        return [weights_of_heads(weights, layers="; if these are layers, give list(weights[:, None])")]
    if not weights:
        raise ValueError("weights must hold at least one layer, got none")
    layers = [weights_of_heads(layer, f"weights[{i}]") for i, layer in enumerate(weights)]
    for i, layer in enumerate(layers):
        if layer.shape != layers[0].shape:
            raise ValueError(
                f"all layers must have one shape (H, Sq, Sk): expected that of the first, {layers[0].shape}, got "
                f"weights[{i}] {layer.shape}"
            )
    return layers


def check_index(name: str, given: Any, count: int) -> int:
    """Return an index that is one of so many."""
    index = check_int(name, given)
    if not 0 <= index < count:
        raise ValueError(f"{name} must be from 0 to {count - 1}, got {index}")
    return index
