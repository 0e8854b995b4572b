"""What is computed: shapes and options, as plain values that travel to another process as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from attention_xp.masks import BlockMask, Mask, bigbird_mask, longformer_mask

__all__ = ["Case"]

GLOBAL_POSITIONS = 32  # of the longformer mask
BLOCKS_ALLOWED = 0.25  # share of the blocks of the block-sparse mask


@dataclass(frozen=True)
class Case:
    """One call of attention on standard normal float32 input.

    The query is multiplied by `factor`, which is then the standard deviation of the scores. A `window` is
    the number of earlier keys that a causal query sees. `option` is one name of `OPTIONS`. torch's contenders convert
    query, key, value and gradient to `dtype`.
    """

    shape: tuple[int, int, int, int] = (1, 8, 2048, 64)
    causal: bool = False
    factor: float = 1.0
    window: int | None = None
    kv_heads: int | None = None
    kv_length: int | None = None
    option: str | None = None
    block_size: int = 128
    tile: tuple[int, int] | None = None
    value_width: int | None = None
    dtype: str = "float32"

    @property
    def kv_shape(self) -> tuple[int, int, int, int]:
        B, H, S, D = self.shape
        return B, self.kv_heads or H, self.kv_length or S, D

    def inputs(self) -> list[NDArray[np.float32]]:
        """Return query, key and value, always the same."""
        rng = np.random.default_rng(0)
        shapes = self.shape, self.kv_shape, (*self.kv_shape[:-1], self.value_width or self.shape[-1])
        arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        arrays[0] *= np.float32(self.factor)
        return arrays

    def inputs_and_gradient(self) -> list[NDArray[np.float32]]:
        """Return query, key and value, and a gradient of the output."""
        gradient = np.random.default_rng(1).standard_normal(self.shape, dtype=np.float32)
        return [*self.inputs(), gradient]

    def options(self, convert: Callable[[Any], Any] = np.asarray) -> dict[str, Any]:
        """Return the keywords of `flash_attention`, arrays converted."""
        chosen: dict[str, Any] = dict(OPTIONS[self.option](self)) if self.option else {}
        chosen = {name: convert(x) if isinstance(x, np.ndarray) else x for name, x in chosen.items()}
        if self.causal:
            chosen["is_causal"] = True
        if self.window is not None:
            chosen["window"] = (self.window, 0)
        if self.tile is not None:
            chosen["tile"] = self.tile
        return chosen

    def density(self) -> float:
        """Return the share of the scores that the mask of the case allows."""
        mask = self.options()["mask"]
        return float(mask.density(self.shape[-2], self.kv_shape[-2]))

    def at(self, length: int) -> Self:
        """Return the same case with another sequence length."""
        B, H, _, D = self.shape
        return replace(self, shape=(B, H, length, D), kv_length=self.kv_length and length)

    def smaller(self) -> Self:
        """Return a sixteenth of the lengths: for a smoke test."""
        B, H, S, D = self.shape
        lengths = {name: value and max(1, value // 16) for name, value in self._lengths().items()}
        return replace(self, shape=(B, H, max(min(S, 16), S // 16), D), tile=None, **lengths)

    def _lengths(self) -> dict[str, Any]:
        return {"window": self.window, "kv_length": self.kv_length, "block_size": self.block_size}

    def to_json(self) -> str:
        """Return the fields that differ from the default."""
        return json.dumps({f.name: asdict(self)[f.name] for f in fields(self) if getattr(self, f.name) != f.default})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the case that `to_json` wrote."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()})

    def __str__(self) -> str:
        words = [str(self.shape).replace(" ", "")]
        if self.kv_shape != self.shape:
            words.append("on " + str(self.kv_shape).replace(" ", ""))
        words += ["causal"] * self.causal
        words += [f"window {self.window}"] * (self.window is not None)
        words += [f"scores x {self.factor:g}"] * (self.factor != 1)
        words += [self.option or ""] * (self.option is not None)
        words += [f"of {self.block_size}"] * (self.option in ("blocks", "bigbird"))
        words += [f"values {self.value_width} wide"] * (self.value_width is not None)
        words += [self.dtype] * (self.dtype != "float32")
        words += [f"tile {self.tile[0]} x {self.tile[1]}"] if self.tile else []
        return " ".join(words)


def _square(case: Case) -> tuple[int, int, int, int]:
    return 1, 1, case.shape[-2], case.kv_shape[-2]


def _blocks(case: Case) -> Mask:
    """Blocks at random, and the diagonal."""
    count = case.shape[-2] // case.block_size
    layout = np.random.default_rng(1).random((count, count)) < BLOCKS_ALLOWED
    return BlockMask(layout | np.eye(count, dtype=bool), case.block_size)


def _bigbird(case: Case) -> Mask:
    """The pattern of the paper, with as many random blocks as there are in the window."""
    count = case.shape[-2] // case.block_size
    return bigbird_mask(count, case.block_size, num_random=3, num_global=2, window_blocks=3, rng=1)


def _longformer(case: Case) -> Mask:
    return longformer_mask(256, np.arange(case.shape[-2]) < GLOBAL_POSITIONS)


OPTIONS = {
    "softcap": lambda case: {"softcap": 20.0},
    "float bias": lambda case: {"bias": np.random.default_rng(1).standard_normal(_square(case), dtype=np.float32)},
    "boolean mask": lambda case: {"mask": np.random.default_rng(1).random(_square(case)) < 0.9},
    "sinks": lambda case: {"sinks": np.linspace(-1, 1, case.shape[1], dtype=np.float32)},
    "dropout": lambda case: {"dropout_rate": 0.1, "rng": 0},
    "blocks": lambda case: {"mask": _blocks(case)},
    "bigbird": lambda case: {"mask": _bigbird(case)},
    "longformer": lambda case: {"mask": _longformer(case)},
}
