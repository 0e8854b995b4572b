"""Scalings of rotary position embeddings by one factor for the base, or for all frequencies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attention_xp._checks.numbers import check_count, check_positive
from attention_xp._rotary.points import Points
from attention_xp._typing import Array

__all__ = [
    "DynamicNTKScaling",
    "LinearScaling",
    "NTKScaling",
    "RotaryScaling",
]


class RotaryScaling:
    r"""No scaling, and the base of all others: :math:`\theta_i = b^{-2i/R}`, in radians per position."""

    @property
    def amplitude(self) -> float:
        """Factor of sines and cosines."""
        return 1.0

    def check(self, rotary_dim: int, base: float) -> None:
        """Refuse a width or a base that the scaling has no meaning for."""

    def frequencies(self, rotary_dim: int, base: float, length: int | None) -> list[float]:  # noqa: ARG002
        """Return the ``rotary_dim // 2`` angles per position of a sequence of some length, None being short."""
        return [base ** (-2.0 * i / rotary_dim) for i in range(rotary_dim // 2)]

    def turns(self, points: Points, base: float, dims: Sequence[int]) -> Array:
        """Return the angles at all points, in turns, for spectra of the given widths side by side."""
        return points.turns(self._spectra(base, dims, points.length))

    def _spectra(self, base: float, dims: Sequence[int], length: int | None) -> list[float]:
        return [f for dim in dims for f in self.frequencies(dim, base, length)]


@dataclass(frozen=True)
class LinearScaling(RotaryScaling):
    r"""Position interpolation: positions are divided by `factor`.

    .. math:: \theta_i' = \theta_i / \mathrm{factor}, \quad \theta_i = b^{-2i/R}

    Parameters
    ----------
    factor : float
        How many times as long sequences become.

    Raises
    ------
    TypeError
        If `factor` is not a number.
    ValueError
        If `factor` is not positive and finite.

    References
    ----------
    Chen et al., "Extending context window of large language models via positional interpolation", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import LinearScaling, rotary_embedding
    >>> x = np.ones((3, 4))
    >>> turned = rotary_embedding(x, np.asarray([0, 2, 4]), scaling=LinearScaling(2.0))
    >>> bool(np.allclose(turned, rotary_embedding(x)))  # as at positions 0, 1, 2
    True
    """

    factor: float

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)

    def frequencies(self, rotary_dim: int, base: float, length: int | None) -> list[float]:
        return [f / self.factor for f in super().frequencies(rotary_dim, base, length)]


@dataclass(frozen=True)
class NTKScaling(RotaryScaling):
    r"""A larger base, :math:`b \cdot \mathrm{factor}^{R/(R-2)}`: slow angles are stretched, fast ones kept.

    Parameters
    ----------
    factor : float
        How many times as long sequences become.

    Raises
    ------
    TypeError
        If `factor` is not a number.
    ValueError
        If `factor` is not positive and finite.

    References
    ----------
    Peng et al., "YaRN: efficient context window extension of large language models", ICLR 2024, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import NTKScaling, rotary_embedding
    >>> x = np.ones((3, 4))
    >>> turned, plain = rotary_embedding(x, scaling=NTKScaling(2.0)), rotary_embedding(x)
    >>> bool(np.allclose(turned[:, 0], plain[:, 0]))  # the fast angle
    True
    >>> bool(np.allclose(turned[2, 1], plain[1, 1]))  # the slow one, half as fast
    True
    """

    factor: float

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)

    def frequencies(self, rotary_dim: int, base: float, length: int | None) -> list[float]:
        plain = super().frequencies(rotary_dim, base, length)
        return [f * self.factor**e for f, e in zip(plain, _ntk_exponents(rotary_dim), strict=True)]


@dataclass(frozen=True)
class DynamicNTKScaling(RotaryScaling):
    r"""`NTKScaling` by :math:`\mathrm{factor} \cdot L / L_0 - (\mathrm{factor} - 1)` for sequences of a length
    :math:`L` beyond :math:`L_0`, and no scaling up to there.

    ``L`` is the length of the sequence where positions are implied, and one more than the largest position of the
    call where they are given; it is then computed as an array, so that nothing depends on values while tracing.

    Parameters
    ----------
    factor : float
        How many times as long sequences become.
    original_max_positions : int
        :math:`L_0`, the length that the model was trained with.

    Raises
    ------
    TypeError
        If `factor` is not a number, or `original_max_positions` is not an int.
    ValueError
        If `factor` is not positive and finite, or `original_max_positions` is less than 1.

    References
    ----------
    Peng et al., "YaRN: efficient context window extension of large language models", ICLR 2024, section 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import DynamicNTKScaling, NTKScaling, rotary_embedding
    >>> short, long = np.ones((8, 4)), np.ones((16, 4))
    >>> scaling = DynamicNTKScaling(2.0, original_max_positions=8)
    >>> bool(np.allclose(rotary_embedding(short, scaling=scaling), rotary_embedding(short)))
    True
    >>> bool(np.allclose(rotary_embedding(long, scaling=scaling), rotary_embedding(long, scaling=NTKScaling(3.0))))
    True
    """  # noqa: D205  # the formula is the summary

    factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        check_count("original_max_positions", self.original_max_positions)

    def frequencies(self, rotary_dim: int, base: float, length: int | None) -> list[float]:
        stretch = self._stretch(max(length or 0, self.original_max_positions))
        plain = super().frequencies(rotary_dim, base, length)
        return [f * stretch**e for f, e in zip(plain, _ntk_exponents(rotary_dim), strict=True)]

    def turns(self, points: Points, base: float, dims: Sequence[int]) -> Array:
        if points.length is not None:
            return super().turns(points, base, dims)
        xp = points.xp
        reach, trained = points.reach(), float(self.original_max_positions)
        stretch = self._stretch(xp.where(reach > trained, reach, trained))
        exponents = points.row([e for dim in dims for e in _ntk_exponents(dim)])
        plain = points.row(self._spectra(base, dims, None))
        return points.turns_by_array(plain * xp.pow(xp.reshape(stretch, (1,) * exponents.ndim), exponents))

    def _stretch(self, length: Any) -> Any:
        return length * (self.factor / self.original_max_positions) - (self.factor - 1.0)


def _ntk_exponents(rotary_dim: int) -> list[float]:
    """Return what the factor of the base comes to: one power of it for each frequency."""
    return [-2.0 * i / max(rotary_dim - 2, 1) for i in range(rotary_dim // 2)]
