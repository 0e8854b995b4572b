"""Attention on arrays that are sharded along the sequence."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from attention_xp.distributed._layouts import shard_positions, shard_sequence, unshard_sequence
from attention_xp.distributed._strategies import (
    gathered_attention,
    merged_attention,
    ring_attention,
    ulysses_attention,
)

if TYPE_CHECKING:
    from attention_xp.distributed._dask.attention import dask_attention, dask_attention_statistics, dask_attention_vjp

__all__ = [
    "dask_attention",
    "dask_attention_statistics",
    "dask_attention_vjp",
    "gathered_attention",
    "merged_attention",
    "ring_attention",
    "shard_positions",
    "shard_sequence",
    "ulysses_attention",
    "unshard_sequence",
]

# Modules that import a framework are imported when a name of theirs is first used.
_LAZY = dict.fromkeys(("dask_attention", "dask_attention_statistics", "dask_attention_vjp"), "_dask.attention")


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(_import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "dask":
            raise
        raise ImportError(f'{name} needs Dask: pip install "attention-xp[dask]"', name="dask") from error


def __dir__() -> list[str]:
    return list(__all__)
