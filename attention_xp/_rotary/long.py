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
    r"""YaRN: slow angles are interpolated, fast ones kept, those between blended; sines and cosines grow a little.

    .. math::

        \theta_i' = \gamma_i \theta_i / \mathrm{factor} + (1 - \gamma_i) \theta_i, \quad
        \gamma_i = \min(\max(\tfrac{i - j(\beta_\mathrm{fast})}{j(\beta_\mathrm{slow}) - j(\beta_\mathrm{fast})}, 0), 1)

    with :math:`\theta_i = b^{-2i/R}`, where :math:`j(\beta) = R \ln(L_0 / 2 \pi \beta) / (2 \ln b)` is the index of the
    angle that makes :math:`\beta` turns over the original length :math:`L_0`.

    Parameters
    ----------
    factor : float
        How many times as long sequences become.
    original_max_positions : int
        :math:`L_0`, the length that the model was trained with.
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

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a number is not finite, `factor` or a beta is not positive, `beta_fast` is less than `beta_slow`, or
        `original_max_positions` is less than 1; from `rotary_embedding` if the base is not greater than 1.

    References
    ----------
    Peng et al., "YaRN: efficient context window extension of large language models", ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import YarnScaling, rotary_embedding
    >>> x = np.ones((16, 64))
    >>> scaling = YarnScaling(4.0, original_max_positions=2048)
    >>> turned, plain = rotary_embedding(x, scaling=scaling) / scaling.amplitude, rotary_embedding(x)
    >>> bool(np.allclose(turned[:, 0], plain[:, 0]))  # the fastest angle
    True
    >>> bool(np.allclose(turned[4, 31], plain[1, 31]))  # the slowest one, a quarter as fast
    True
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
    r"""Llama 3.1: long waves are interpolated, short ones kept, those between blended.

    .. math::

        \theta_i' = (1 - \gamma_i) \theta_i / \mathrm{factor} + \gamma_i \theta_i, \quad
        \gamma_i = \min(\max(\tfrac{L_0 \theta_i / 2 \pi - \mathrm{low}}{\mathrm{high} - \mathrm{low}}, 0), 1), \quad
        \theta_i = b^{-2i/R}

    with `low_freq_factor` and `high_freq_factor` for low and high.

    Parameters
    ----------
    factor : float
        How many times as long sequences become.
    low_freq_factor, high_freq_factor : float
        Waves longer than ``original_max_positions / low_freq_factor`` are interpolated, those shorter than
        ``original_max_positions / high_freq_factor`` are kept.
    original_max_positions : int
        :math:`L_0`, the length that the model was trained with.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a factor is not positive and finite, `high_freq_factor` is not greater than `low_freq_factor`, or
        `original_max_positions` is less than 1.

    References
    ----------
    Grattafiori et al., "The Llama 3 herd of models", 2024, and the code published with the models.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import Llama3Scaling, rotary_embedding
    >>> x = np.ones((16, 128))
    >>> llama = {"base": 500000.0, "scaling": Llama3Scaling(8.0, 1.0, 4.0, 8192)}
    >>> turned, plain = rotary_embedding(x, **llama), rotary_embedding(x, base=500000.0)
    >>> bool(np.allclose(turned[:, 0], plain[:, 0]))  # the shortest wave
    True
    >>> bool(np.allclose(turned[8, 63], plain[1, 63]))  # the longest one, eight times as long
    True
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
    r"""LongRoPE: every frequency is divided by a factor of its own, one set for short and one for long sequences.

    .. math::

        \theta_i' = \begin{cases} \theta_i / \mathrm{short}_i & L \le L_0 \\
        \theta_i / \mathrm{long}_i & L > L_0 \end{cases}, \quad \theta_i = b^{-2i/R}

    A sequence is long where its length, or one more than the largest position of the call where positions are given,
    exceeds `original_max_positions`. Given positions are compared as arrays, so that nothing depends on values while
    tracing.

    Parameters
    ----------
    short_factor, long_factor : sequence of float
        ``rotary_dim // 2`` divisors each.
    original_max_positions : int
        :math:`L_0`, the length that the model was trained with.
    factor : float, default: 1.0
        How many times as long sequences become, which decides `attention_factor` alone.
    attention_factor : float, optional
        Factor of sines and cosines. Default: ``sqrt(1 + log(factor) / log(original_max_positions))``, or 1 where
        `factor` is below 1.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a divisor or `factor` is not positive and finite, `attention_factor` is not finite, or `original_max_positions` is
        less than 2; from `rotary_embedding` if there are not ``rotary_dim // 2`` divisors.

    References
    ----------
    Ding et al., "LongRoPE: extending LLM context window beyond 2 million tokens", ICML 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import LongRopeScaling, rotary_embedding
    >>> short, long = np.ones((8, 4)), np.ones((16, 4))
    >>> scaling = LongRopeScaling((1.0, 1.0), (1.0, 2.0), original_max_positions=8)
    >>> bool(np.allclose(rotary_embedding(short, scaling=scaling), rotary_embedding(short)))
    True
    >>> bool(np.allclose(rotary_embedding(long, scaling=scaling)[2, 1], rotary_embedding(long)[1, 1]))
    True
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
