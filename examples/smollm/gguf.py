"""Read a model file in the format of llama.cpp: what is said about the model, then its tensors, mostly in few bits.

The format is described in ggml's docs/gguf.md, the blocks of its quantized types in ggml-common.h.
"""

import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
BLOCK = 32  # weights that share their scale

Q4_1 = np.dtype([("scale", "<f2"), ("least", "<f2"), ("codes", "u1", BLOCK // 2)])
Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", BLOCK)])


def as_they_are(values: npt.NDArray[Any]) -> Floats:
    """Return floating numbers in float32."""
    return values.astype(np.float32, copy=False)


def from_q4_1(blocks: npt.NDArray[Any]) -> Floats:
    """Return ``scale * code + least`` for codes of four bits: (N,) blocks -> (N, 32)."""
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1)  # 2 times (N, 16) -> (N, 32)
    scale, least = (blocks[name][:, None].astype(np.float32) for name in ("scale", "least"))
    weights: Floats = scale * codes + least
    return weights


def from_q8_0(blocks: npt.NDArray[Any]) -> Floats:
    """Return ``scale * code`` for codes of eight bits: (N,) blocks -> (N, 32)."""
    weights: Floats = blocks["scale"][:, None].astype(np.float32) * blocks["codes"]
    return weights


# How many weights an item of the file stands for, its dtype, and what turns it into float32.
TYPES: dict[int, tuple[int, npt.DTypeLike, Callable[[npt.NDArray[Any]], Floats]]] = {
    0: (1, "<f4", as_they_are),
    1: (1, "<f2", as_they_are),
    3: (BLOCK, Q4_1, from_q4_1),
    8: (BLOCK, Q8_0, from_q8_0),
}


def read_number(file: BinaryIO, code: str) -> Any:
    """Read one number of a type of `struct`."""
    return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]


def read_string(file: BinaryIO) -> str:
    """Read a text, which comes after its length."""
    return file.read(read_number(file, "Q")).decode("utf-8")


def read_value(file: BinaryIO, kind: int) -> Any:
    """Read a number, a text, or a list of either."""
    if kind == STRING:
        return read_string(file)
    if kind == ARRAY:
        kind, count = read_number(file, "I"), read_number(file, "Q")
        return [read_value(file, kind) for _ in range(count)]
    return read_number(file, NUMBERS[kind])


def read_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], kind: int) -> Floats:
    """Read a tensor from where the file stands."""
    if kind not in TYPES:
        raise ValueError(f"{name} is of type {kind} of ggml, which is none of {sorted(TYPES)}")
    weights, dtype, convert = TYPES[kind]
    items = np.fromfile(file, dtype, prod(shape) // weights)
    return convert(items).reshape(shape)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Return what a file says about its model, and the tensors by name, in float32; those of dense layers are (out, in)."""
    with path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it begins with {magic!r}")
        if (version := read_number(file, "I")) not in VERSIONS:
            raise ValueError(f"{path} has version {version} of GGUF, which is none of {VERSIONS}")
        tensors, facts = read_number(file, "Q"), read_number(file, "Q")
        about = {read_string(file): read_value(file, read_number(file, "I")) for _ in range(facts)}
        places = {}
        for _ in range(tensors):
            name = read_string(file)
            innermost_first = [read_number(file, "Q") for _ in range(read_number(file, "I"))]
            places[name] = tuple(reversed(innermost_first)), read_number(file, "I"), read_number(file, "Q")
        alignment = about.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
        found = {}
        for name, (shape, kind, offset) in places.items():
            file.seek(start + offset)
            found[name] = read_tensor(file, name, shape, kind)
    return about, found
