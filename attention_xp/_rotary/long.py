"""Scalings of rotary position embeddings that treat fast and slow angles differently."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from attention_xp._checks.numbers import check_count, check_flag, check_number, check_positive
from attention_xp._rotary.points import Points, in_turns
from attention_xp._rotary.scaling import RotaryScaling
from attention_xp._typing import Array

__all__ = ["Llama3Scaling", "LongRopeScaling", "YarnScaling"]


@dataclass(frozen=True)
class YarnScaling(RotaryScaling):
    """YaRN: slow angles are interpolated, fast ones kept, those between blended; sines and cosines grow a little.

    Parameters
    ----------
    factor : float
        How many times as long sequences become.
    original_max_positions : int
        The length that the model was trained with.
    beta_fast, beta_slow : float, default: 32, 1
        Angles that make more turns than `beta_fast` over the original length are kept, those that make fewer than
        `beta_slow` are interpolated.
    attention_factor : float, optional
        Factor of sines and cosines. Default: ``0.1 * log(factor) + 1``; with both `mscale` and `mscale_all_dim`,
        ``(0.1 * mscale * log(factor) + 1) / (0.1 * mscale_all_dim * log(factor) + 1)``.
    mscale, mscale_all_dim : float, optional
        See `attention_factor`.
    truncate : bool, default: True
        Whether the blend begins and ends at whole frequencies.

    References
    ----------
    Peng et al., "YaRN: efficient context window extension of large language models", ICLR 2024.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32
    beta_slow: float = 1
    attention_factor: float | None = None
    mscale: float | None = field(default=None, kw_only=True)
    mscale_all_dim: float | None = field(default=None, kw_only=True)
    truncate: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        check_count("original_max_positions", self.original_max_positions)
        slow, fast = check_positive("beta_slow", self.beta_slow), check_positive("beta_fast", self.beta_fast)
        if fast < slow:
            raise ValueError(f"beta_fast must not be less than beta_slow, got beta_fast {fast}, beta_slow {slow}")
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        check_flag("truncate", self.truncate)

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        return self._growth(1.0)

    def _growth(self, scale: float) -> float:
        return 1.0 if self.factor <= 1.0 else 0.1 * scale * math.log(self.factor) + 1.0

    def check(self, rotary_dim: int, base: float) -> None:  # noqa: ARG002
        if base <= 1.0:
            raise ValueError(f"base must be greater than 1 with YarnScaling, got {base}")

    def frequencies(self, rotary_dim: int, base: float, length: int | None) -> list[float]:
        first, last = self._blend(rotary_dim, base)
        blended = []
        for i, f in enumerate(super().frequencies(rotary_dim, base, length)):
            share = min(max((i - first) / (last - first), 0.0), 1.0)
            blended.append(share * f / self.factor + (1.0 - share) * f)
        return blended

    def _blend(self, rotary_dim: int, base: float) -> tuple[float, float]:
        """Return the indices between which frequencies are blended."""

        def index(turns: float) -> float:  # of the frequency that makes so many turns over the original length
            wavelength = in_turns(self.original_max_positions) / turns
            return rotary_dim * math.log(wavelength) / (2.0 * math.log(base))

        first, last = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rotary_dim - 1)
        return first, last + 0.001 if first == last else last  # a step where there is no room for a ramp


@dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Llama 3.1: long waves are interpolated, short ones kept, those between blended.

    Parameters
    ----------
    factor : float
        How many times as long sequences become.
    low_freq_factor, high_freq_factor : float
        Waves longer than ``original_max_positions / low_freq_factor`` are interpolated, those shorter than
        ``original_max_positions / high_freq_factor`` are kept.
    original_max_positions : int
        The length that the model was trained with.

    References
    ----------
    Grattafiori et al., "The Llama 3 herd of models", 2024, and the code published with the models.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        low = check_positive("low_freq_factor", self.low_freq_factor)
        high = check_positive("high_freq_factor", self.high_freq_factor)
        if high <= low:
            raise ValueError(
                f"high_freq_factor must be greater than low_freq_factor, got high_freq_factor {high}, "
                f"low_freq_factor {low}"
            )
        check_count("original_max_positions", self.original_max_positions)

    def frequencies(self, rotary_dim: int, base: float, length: int | None) -> list[float]:
        return [self._scaled(f) for f in super().frequencies(rotary_dim, base, length)]

    def _scaled(self, frequency: float) -> float:
        turns: float = in_turns(self.original_max_positions * frequency)  # over the original length
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        return (1.0 - kept) * frequency / self.factor + kept * frequency


@dataclass(frozen=True)
class LongRopeScaling(RotaryScaling):
    """LongRoPE: every frequency is divided by a factor of its own, one set for short and one for long sequences.

    A sequence is long where its length, or one more than the largest position of the call where positions are given,
    exceeds `original_max_positions`. Given positions are compared as arrays, so that nothing depends on values while
    tracing.

    Parameters
    ----------
    short_factor, long_factor : sequence of float
        ``rotary_dim // 2`` divisors each.
    original_max_positions : int
        The length that the model was trained with.
    factor : float, default: 1.0
        How many times as long sequences become, which decides `attention_factor` alone.
    attention_factor : float, optional
        Factor of sines and cosines. Default: ``sqrt(1 + log(factor) / log(original_max_positions))``, or 1 where
        `factor` is below 1.

    References
    ----------
    Ding et al., "LongRoPE: extending LLM context window beyond 2 million tokens", ICML 2024.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_positions: int
    factor: float = field(default=1.0, kw_only=True)
    attention_factor: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            given = getattr(self, name)
            if not isinstance(given, tuple | list):
                raise TypeError(f"{name} must be a sequence of numbers, got {type(given).__name__}")
            divisors = tuple(check_positive(f"{name}[{i}]", number) for i, number in enumerate(given))
            object.__setattr__(self, name, divisors)
        check_count("original_max_positions", self.original_max_positions, low=2)
        check_positive("factor", self.factor)
        if self.attention_factor is not None:
            check_number("attention_factor", self.attention_factor)

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1.0 + max(math.log(self.factor), 0.0) / math.log(self.original_max_positions))

    def check(self, rotary_dim: int, base: float) -> None:  # noqa: ARG002
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != rotary_dim // 2:
                raise ValueError(
                    f"{name} must hold one number for each pair: expected rotary_dim // 2 = {rotary_dim // 2}, "
                    f"got {len(getattr(self, name))}"
                )

    def frequencies(self, rotary_dim: int, base: float, length: int | None) -> list[float]:
        divisors = self.long_factor if (length or 0) > self.original_max_positions else self.short_factor
        return [f / d for f, d in zip(super().frequencies(rotary_dim, base, length), divisors, strict=True)]

    def turns(self, points: Points, base: float, dims: Sequence[int]) -> Array:
        if points.length is not None:
            return super().turns(points, base, dims)
        limit = self.original_max_positions
        short, long = (points.turns(self._spectra(base, dims, length)) for length in (limit, limit + 1))
        return points.xp.where(points.reach() > limit, long, short)
