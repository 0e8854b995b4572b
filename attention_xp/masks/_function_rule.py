"""Masks given by a function of the user."""

import inspect
from collections.abc import Callable
from typing import TypeAlias

from attention_xp._checks.numbers import check_count
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.masks._mask import Mask
from attention_xp.masks._pairs import rule

__all__ = ["FunctionMask"]

MaskMod: TypeAlias = Callable[[Array, Array, Array, Array], Array]


@rule
class FunctionMask(Mask):
    """A rule written as a function, with the signature of FlexAttention.

    No rectangle of it can be skipped: attention asks the function about every pair.

    Parameters
    ----------
    mask_mod : callable
        ``mask_mod(b, h, q_idx, kv_idx)`` returns a boolean array. The arguments are integer arrays that broadcast
        against the scores: flat batch index, head, query position and key position.
    batch, heads : int, default: 1
        How many batch items and heads ``to_array``, ``density`` and ``str`` show of a function that depends on them;
        attention goes by its query. ``density`` and ``str`` call the function with NumPy arrays. ``any_allowed`` looks at
        pairs where either is given, and says True elsewhere.

    Raises
    ------
    TypeError
        If `mask_mod` is not callable or, when it is used, does not take four arguments or return a boolean array.
    ValueError
        If `batch` or `heads` is below 1.

    References
    ----------
    Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", 2024.

    Examples
    --------
    >>> from attention_xp.masks import FunctionMask
    >>> FunctionMask(lambda b, h, q_idx, kv_idx: q_idx + kv_idx < 2 + h, heads=2).to_array(2, 3)[0]
    array([[[ True,  True, False],
            [ True, False, False]],
    <BLANKLINE>
           [[ True,  True,  True],
            [ True,  True, False]]])
    """

    mask_mod: MaskMod
    batch: int = 1
    heads: int = 1

    def __init__(self, mask_mod: MaskMod, *, batch: int = 1, heads: int = 1) -> None:
        if not callable(mask_mod):
            raise TypeError(
                f"mask_mod must be callable as mask_mod(b, h, q_idx, kv_idx), got {type(mask_mod).__name__}"
            )
        self.mask_mod = mask_mod
        self.batch = check_count("batch", batch)
        self.heads = check_count("heads", heads)

    def __repr__(self) -> str:
        return f"FunctionMask({getattr(self.mask_mod, '__name__', repr(self.mask_mod))})"

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the batch items and heads that were announced."""
        return () if self.batch == self.heads == 1 else (self.batch, self.heads)

    def allowed(self, region: Region) -> Array:
        """Return the flags that the function returns."""
        return self.mask_mod(region.b, region.h, region.q_idx, region.kv_idx)

    def _mistake(self, error: Exception) -> str | None:
        if isinstance(error, TypeError) and not _takes_four(self.mask_mod):
            return f"mask_mod must take four arguments, mask_mod(b, h, q_idx, kv_idx): {error}"
        return super()._mistake(error)

    @property
    def _author(self) -> str:
        return "mask_mod"


def _takes_four(function: MaskMod) -> bool:
    """Whether a function can be called with four arguments; True where Python cannot know."""
    try:
        inspect.signature(function).bind(*range(4))
    except TypeError:
        return False
    except ValueError:
        return True
    return True
