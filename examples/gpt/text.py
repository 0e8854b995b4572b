"""Text as numbers and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from gpt.weights import Array, Config


@dataclass(frozen=True)
class Text:
    """A text and its alphabet, the characters in it."""

    characters: str
    alphabet: str

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file."""
        characters = file.read_text(encoding="utf-8")
        return cls(characters, "".join(sorted(set(characters))))

    def encode(self, characters: str) -> Array:
        """Return for each character its place in the alphabet; a `ValueError` for one that is not there."""
        return np.asarray([self.alphabet.index(c) for c in characters], np.int64)

    def decode(self, ids: Array) -> str:
        """Return the characters at places of the alphabet."""
        return "".join(self.alphabet[i] for i in ids)

    def batches(self, config: Config, seed: int) -> Iterator[tuple[Array, Array]]:
        """Yield windows from random places, and the same windows one character later: (B, S) both, without end."""
        rng = np.random.default_rng(seed)
        ids = self.encode(self.characters)
        while True:
            starts = rng.integers(len(ids) - config.context, size=(config.batch, 1))
            windows = ids[starts + np.arange(config.context + 1)]  # (B, 1) + (S + 1,) -> (B, S + 1)
            yield windows[:, :-1], windows[:, 1:]  # (B, S + 1) -> (B, S), (B, S)
