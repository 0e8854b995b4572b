"""Functions that torch's FlexAttention takes, which are written for one pair of query and key, over all pairs of a tile."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["axes_of", "mask_over_blocks", "mask_over_tiles", "score_over_tiles"]

_AXES = "bhqk"


def score_over_tiles(score_mod: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function of the scores of a tile ``(B, H, q, k)``, for one of a single score."""
    mapped = _mapped(score_mod, "bhqk", takes_score=True)

    def of_tile(score: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
        if 0 in score.shape:  # over no pairs, `vmap` fails
            return score
        with _Indexing():
            return mapped(score, *(index.reshape(-1) for index in places))

    return of_tile


def mask_over_tiles(mask_mod: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Return a function of the pairs of a tile for one of a single pair; its result has length 1 where that is constant."""
    found: list[tuple[Callable[..., torch.Tensor], str]] = []

    def of_tile(*places: Any) -> Any:
        given = [torch.as_tensor(index) for index in places]  # those of NumPy show a rule
        indices = [index.reshape(-1) for index in given]
        with _Indexing():
            shape = torch.broadcast_shapes(*(index.shape for index in given))
            in_order = math.prod(shape) == math.prod([len(index) for index in indices])
            # Positions may differ from item to item; and Dynamo cannot map a look-up by several indices in turn.
            if not in_order or torch.compiler.is_compiling():
                flags = torch.vmap(mask_mod)(*(index.expand(shape).reshape(-1) for index in given))
            else:
                if not found:
                    axes = axes_of(mask_mod, indices)
                    found.append((_mapped(mask_mod, axes, takes_score=False), axes))
                mapped, axes = found[0]
                flags = mapped(*(i if axis in axes else i[0] for i, axis in zip(indices, _AXES, strict=True)))
                varying = (index for index, axis in zip(given, _AXES, strict=True) if axis in axes)
                shape = torch.broadcast_shapes(*(index.shape for index in varying))
        flags = flags.reshape(shape)
        return flags if isinstance(places[0], torch.Tensor) else flags.numpy()

    return of_tile


def mask_over_blocks(mask_mod: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function of many blocks at a time: of their items and heads, ``(P,)``, queries ``(P, n)`` and keys ``(P, m)``."""
    mapped = torch.vmap(_mapped(mask_mod, "qk", takes_score=False))

    def of_blocks(*places: torch.Tensor) -> torch.Tensor:
        with _Indexing():
            return mapped(*places)

    return of_blocks


def _mapped(function: Callable[..., Any], axes: str, *, takes_score: bool) -> Callable[..., Any]:
    """Return a function mapped over some of the four indices, and over as many axes of the score."""
    for axis in reversed(axes):
        indices = [0 if other == axis else None for other in _AXES]
        function = torch.vmap(function, in_dims=tuple([0, *indices] if takes_score else indices))
    return function


def axes_of(mask_mod: Callable[..., Any], indices: list[torch.Tensor]) -> str:
    """Return what the flags depend on, the positions and perhaps more: most functions look at neither batch item nor head."""
    for axes in ("qk", "hqk", "bqk"):
        if not _varies(mask_mod, [i[:1] for i in indices], [axis for axis in "bh" if axis not in axes]):
            return axes
    return _AXES


def _varies(mask_mod: Callable[..., Any], indices: list[torch.Tensor], axes: list[str]) -> bool:
    """Whether a function uses one of some indices: `vmap` refuses to leave a result without an axis that it has."""
    function = mask_mod
    for axis in axes:
        dims = tuple(0 if other == axis else None for other in _AXES)
        function = torch.vmap(function, in_dims=dims, out_dims=None)
    try:
        with _Constants():
            function(*(i if axis in axes else i[0] for i, axis in zip(indices, _AXES, strict=True)))
    # A function may change in place what it has made of such a constant, which then fails.
    except (RuntimeError, ValueError):
        return True
    return False


class _Indexing(TorchFunctionMode):  # type: ignore[misc]
    """Lets ``table[q_idx, kv_idx]`` look up entries where the indices are mapped, which Python's brackets take for ints."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        if func is torch.Tensor.__getitem__:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if all(isinstance(i, torch.Tensor) for i in indices):
                return torch.ops.aten.index(args[0], list(indices))
        return func(*args, **(kwargs or {}))


class _Constants(TorchFunctionMode):  # type: ignore[misc]
    """Lets ``b.new_ones(...)``, with which ``and_masks`` of torch begins, depend on no index."""

    _MADE = torch.Tensor.new_ones, torch.Tensor.new_zeros, torch.Tensor.new_full

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        if func in self._MADE:
            args = (torch.empty((), dtype=args[0].dtype, device=args[0].device), *args[1:])
        return func(*args, **(kwargs or {}))
