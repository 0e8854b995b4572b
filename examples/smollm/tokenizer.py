"""Text as tokens and back: byte pair encoding (Sennrich et al., 2016) on bytes, as GPT-2 has it."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

# Endings, words and other signs, each with a space before it, and spaces. There are no numerals then: what is alphanumeric
# is a letter.
PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W_]+| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+")


def printable_bytes() -> dict[int, str]:
    """Return the characters that stand for the bytes in a vocabulary: their own where they can be seen."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unseen = (byte for byte in range(256) if byte not in seen)
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(unseen)}


CHARACTERS = printable_bytes()
BYTES = {character: byte for byte, character in CHARACTERS.items()}


def pieces(text: str) -> Iterator[str]:
    """Yield the parts of a text that share no token: every numeral is one."""
    start = 0
    for place, character in enumerate(text):
        if unicodedata.category(character).startswith("N"):
            yield from PIECE.findall(text[start:place])
            yield character
            start = place + 1
    yield from PIECE.findall(text[start:])


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, and which pairs of tokens become one, the most frequent first."""

    tokens: list[str]
    ids: dict[str, int]
    ranks: dict[tuple[str, ...], int]

    @classmethod
    def of(cls, about: dict[str, Any]) -> Self:
        """Return the tokenizer that a GGUF file tells about."""
        kind = about["tokenizer.ggml.model"], about["tokenizer.ggml.pre"]
        if kind != ("gpt2", "smollm"):
            raise ValueError(f"expected a tokenizer of the kind gpt2, smollm, got {', '.join(kind)}")
        tokens = about["tokenizer.ggml.tokens"]
        merges = about["tokenizer.ggml.merges"]
        ids = {token: i for i, token in enumerate(tokens)}
        return cls(tokens, ids, {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)})

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; in it, what reads like a control token is text."""
        found = [token for piece in pieces(text) for token in self.merge(piece)]
        if strange := [token for token in found if token not in self.ids]:
            raise UnicodeError(f"the vocabulary has no token for the byte {BYTES[strange[0]]:#x} in {text!a}")
        return [self.ids[token] for token in found]

    def merge(self, piece: str) -> list[str]:
        """Join neighbours, of all that may be joined the most frequent ones first."""
        parts = [CHARACTERS[byte] for byte in piece.encode("utf-8")]
        while len(parts) > 1:
            rank, place = min((self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(pairwise(parts)))
            if rank == len(self.ranks):
                break
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        return parts

    def decode(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that tokens stand for, which may end in the middle of a character."""
        return bytes(BYTES[character] for i in ids for character in self.tokens[i])
