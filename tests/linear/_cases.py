"""Inputs of linear attention for each update rule, as NumPy arrays."""

from typing import Any

import numpy as np

from attention_xp.linear import LinearState
from tests._backends import Backend
from tests._inputs import normal

RULES = {
    "linear": {},
    "gated": {"decay": "channel"},
    "gated by head": {"decay": "head"},
    "delta": {"beta": True},
    "gated_delta": {"decay": "channel", "beta": True},
    "gated_delta by head": {"decay": "head", "beta": True},
}
# Rules of which others have every part.
PARTS = {"gated by head", "delta"}


def inputs(
    rule: str,
    *,
    lead: tuple[int, ...] = (2,),
    heads: tuple[int, int] = (4, 2),
    S: int = 37,
    D: int = 8,
    Dv: int = 5,
    strength: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """The arguments of a call: keys of length 1, and decays from next to nothing to next to everything."""
    (H, Hkv), kinds = heads, RULES[rule]
    key = normal(*lead, Hkv, S, D, seed=seed + 1)
    given = {
        "query": normal(*lead, H, S, D, seed=seed),
        "key": key / np.linalg.norm(key, axis=-1, keepdims=True),
        "value": normal(*lead, Hkv, S, Dv, seed=seed + 2),
        "update_rule": rule.removesuffix(" by head"),
    }
    if "decay" in kinds:
        width = D if kinds["decay"] == "channel" else 1
        given["decay"] = -np.exp(2.0 * strength * normal(*lead, Hkv, S, width, seed=seed + 3))
    if "beta" in kinds:
        given["beta"] = 1.0 / (1.0 + np.exp(-normal(*lead, Hkv, S, 1, seed=seed + 4)))
    return given


def state(lead: tuple[int, ...] = (2,), Hkv: int = 2, D: int = 8, Dv: int = 5) -> LinearState:
    """What an earlier call may have remembered."""
    return LinearState(normal(*lead, Hkv, D, Dv, seed=5), np.abs(normal(*lead, Hkv, D, seed=6)))


def made(library: Backend, given: dict[str, Any], dtype: str | None = None) -> dict[str, Any]:
    """The same arguments with arrays of a library."""

    def make(x: Any) -> Any:
        if isinstance(x, LinearState):
            return LinearState(*map(make, x))
        return library.array(x, dtype) if isinstance(x, np.ndarray) else x

    return {name: make(x) for name, x in given.items()}


def part(given: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The arguments for some of the positions."""
    return {name: x[..., start:stop, :] if isinstance(x, np.ndarray) else x for name, x in given.items()}
