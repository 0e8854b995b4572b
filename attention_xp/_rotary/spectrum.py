"""The frequencies of a rotary position embedding, and the tables of cosines and sines that they give."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device as device_of
from attention_xp._backend.sizes import is_open
from attention_xp._checks.arrays import check_integers, shapes
from attention_xp._checks.numbers import check_count, check_flag, check_positive
from attention_xp._rotary.points import Points
from attention_xp._rotary.scaling import RotaryScaling
from attention_xp._typing import Array, DType, Namespace

__all__ = ["Spectrum", "check_positions", "spectrum"]


class Spectrum(NamedTuple):
    """Checked options that decide the angle of each pair of features."""

    rotary_dim: int
    base: float
    scaling: RotaryScaling
    sections: tuple[int, ...] | None
    axial: bool

    def implied(self, xp: Namespace, length: int, dtype: DType, device: Any) -> tuple[Array, Array]:
        """Return cosines and sines ``(S, rotary_dim // 2)`` of the positions 0 to ``S - 1``."""
        positions = xp.arange(length, dtype=xp.int32, device=device)[:, None]
        return self._tables(Points(xp, positions, dtype, None if is_open(length) else length))

    def given(self, xp: Namespace, positions: Array, dtype: DType) -> tuple[Array, Array]:
        """Return cosines and sines ``(..., S, rotary_dim // 2)`` of positions, which may have axes in front."""
        length = 0 if 0 in positions.shape else None  # nothing has no largest position
        return self._tables(Points(xp, self.columns(xp, positions), dtype, length))

    def columns(self, xp: Namespace, positions: Array) -> Array:
        """Return the position of every pair, ``(..., S, rotary_dim // 2)``, or ``(..., S, 1)`` where it is one."""
        positions = as_dtype(xp, positions, xp.int32)
        if self.sections is None:
            return xp.expand_dims(positions, axis=-1)
        axes = [i % positions.shape[0] for i, n in enumerate(self.sections) for _ in range(n)]
        index = xp.asarray(axes, dtype=xp.int32, device=device_of(positions))
        rows = xp.take(positions, index, axis=0)  # (axes, ..., S) -> (R / 2, ..., S)
        return xp.permute_dims(rows, (*range(1, rows.ndim), 0))

    def _tables(self, points: Points) -> tuple[Array, Array]:
        dims = [2 * n for n in self.sections or ()] if self.axial else [self.rotary_dim]
        angles = self.scaling.turns(points, self.base, dims) * (2.0 * math.pi)
        cos, sin = points.xp.cos(angles), points.xp.sin(angles)
        amplitude = float(self.scaling.amplitude)
        return (cos, sin) if amplitude == 1.0 else (cos * amplitude, sin * amplitude)


def spectrum(rotary_dim: int, base: Any, scaling: Any, sections: Any, axial: Any) -> Spectrum:
    """Check the options and return them."""
    base, axial = check_positive("base", base), check_flag("axial", axial)
    scaling = RotaryScaling() if scaling is None else scaling
    if not isinstance(scaling, RotaryScaling):
        raise TypeError(f"scaling must be a scaling such as LinearScaling(2.0), got {type(scaling).__name__}")
    sections = _sections(sections, rotary_dim)
    if axial and sections is None:
        raise ValueError("axial=True needs sections: expected the number of pairs for each axis, got sections None")
    for dim in [2 * n for n in sections or ()] if axial else [rotary_dim]:
        scaling.check(dim, base)
    return Spectrum(rotary_dim, base, scaling, sections, axial)


def _sections(sections: Sequence[int] | None, rotary_dim: int) -> tuple[int, ...] | None:
    if sections is None:
        return None
    if not isinstance(sections, tuple | list):
        raise TypeError(f"sections must be a tuple of ints, got {type(sections).__name__}")
    counts = tuple(check_count(f"sections[{i}]", n) for i, n in enumerate(sections))
    if sum(counts) != rotary_dim // 2:
        raise ValueError(
            f"sections must divide the pairs among the axes of positions: expected a sum of rotary_dim // 2 = "
            f"{rotary_dim // 2}, got sections {counts}"
        )
    return counts


def check_positions(xp: Namespace, positions: Array, sections: tuple[int, ...] | None) -> tuple[int, ...]:
    """Check kind and axes of given positions; return their shape without the axis that `sections` asks for."""
    check_integers(xp, "positions", positions)
    if sections is None:
        if positions.ndim < 1:
            raise ValueError(
                f"positions needs at least 1 axis: expected positions (..., S), {shapes(positions=positions)}"
            )
        return tuple(positions.shape)
    if positions.ndim < 2 or not 1 <= positions.shape[0] <= len(sections):
        raise ValueError(
            f"positions must have one axis more with sections: expected positions (axes, ..., S) with at most "
            f"{len(sections)} axes for sections {sections}, {shapes(positions=positions)}"
        )
    return tuple(positions.shape[1:])
