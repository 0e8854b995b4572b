"""Biases as rules: their values for a tile of the scores, their gradients, and pictures."""

import math
from dataclasses import replace
from typing import Any

from attention_xp._backend.dtypes import as_dtype, is_floating
from attention_xp._backend.libraries import common_namespace, creation_namespace, device, is_numpy_namespace
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_result
from attention_xp._scores.attributes import attributes
from attention_xp._scores.frame import Frame, frame_of
from attention_xp._scores.region import Region
from attention_xp._scores.rule import Rule, arrays_of, forget_promises, on_host, short
from attention_xp._typing import Array, Namespace
from attention_xp.biases._drawing import pictured

__all__ = ["Bias", "evaluated", "gradients_of", "has_diagonals", "sampled", "spread_over_lead"]

_LENGTH = 32  # queries and keys of a picture


class Bias(Rule):
    """A rule for what is added to the scores, evaluated tile by tile, so that ``(Sq, Sk)`` is never materialised.

    To write one, subclass and define `values`. The arrays that it depends on are attributes: NumPy arrays, which
    serve attention on every library, or arrays of the library of the query. torch and JAX differentiate in the
    latter; for NumPy and CuPy, `vjp` returns the gradients. JAX compiles a bias once for all that differ in their arrays
    alone: a bias is a value, and anything else that `values` depends on must not change. What a class says of its values,
    by `may_exclude`, `shift_invariant` and `bound`, does not hold for a subclass with other values, which says it anew.

    Where a bias adds minus infinity, the pair is excluded, as by a mask.

    Attributes
    ----------
    may_exclude : bool
        Whether minus infinity may be among the values. A class that never gives it sets False, which saves time.
    shift_invariant : bool
        Whether the values depend on nothing but the head, the batch item and the difference of the positions. A class that
        sets True is evaluated on NumPy for each difference once, and not for each pair, which saves most of the time. That is
        not checked: where the values depend on anything else, the output is wrong. A subclass that defines `values` anew has
        to set it anew.
    lead : tuple of int
        The leading axes ``(..., H)`` that the values depend on, the heads last, so that pictures show all heads; ``()``,
        the first batch item and head, is always right.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import scaled_dot_product_attention
    >>> from attention_xp.biases import Bias
    >>> class GaussianBias(Bias):
    ...     shift_invariant, may_exclude = True, False
    ...
    ...     def __init__(self, width):
    ...         self.width = width  # (H,)
    ...
    ...     def values(self, region):
    ...         distance = region.floating(region.q_idx - region.kv_idx)
    ...         return -0.5 * (distance / region.per_head(self.width)) ** 2
    >>> x = np.zeros((1, 2, 3, 4))
    >>> _, weights = scaled_dot_product_attention(x, x, x, bias=GaussianBias(np.asarray([0.5, 2.0])))
    >>> weights[0, :, 0].round(2)
    array([[0.88, 0.12, 0.  ],
           [0.4 , 0.35, 0.24]])
    """

    may_exclude: bool = True
    shift_invariant: bool = False
    lead: tuple[int, ...] = ()

    def __init_subclass__(cls, **given: Any) -> None:
        """Keep no promise of another class for values that a class defines anew."""
        super().__init_subclass__(**given)
        forget_promises(cls, "values", ("may_exclude", "shift_invariant", "bound", "vjp"))

    def values(self, region: Region) -> Array:
        """Return a floating array that broadcasts against the scores of a region.

        Parameters
        ----------
        region : Region
            A rectangle of the scores: integer index arrays ``b``, ``h``, ``q_idx`` and ``kv_idx``, which broadcast
            against its scores; ``region.floating(x)``, any numbers in the dtype of the scores;
            ``region.per_head(x)``, numbers ``(H,)`` or ``(B, H)`` aligned with the scores; and the array library ``xp``.

        Returns
        -------
        array
            What is added to the scores.
        """
        raise NotImplementedError(f"{type(self).__name__} must define values(region)")

    def bound(self, region: Region) -> float:  # noqa: ARG002
        """Return a bound on the magnitudes of the values in a region, where one is known without evaluating all pairs.

        It is used on NumPy alone, where small scores are computed faster. Infinity, "not known", is always right.
        """
        return math.inf

    def vjp(self, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Return what the gradient of the scores of a region contributes to the gradients of `arrays`.

        Parameters
        ----------
        region : Region
            A rectangle of the scores.
        grad_scores : array
            The gradient of its scores, in their shape.

        Returns
        -------
        tuple of array
            One for each of `arrays`, in its shape: the parts of all regions sum up to the gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} must define vjp(region, grad_scores)")

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The floating arrays that the values depend on, in the order of the attributes."""
        named = ((common_namespace(**{name: array}), array) for name, array in arrays_of(self))
        return tuple(array for xp, array in named if is_floating(xp, array.dtype))

    def __repr__(self) -> str:
        given = (f"{name}={short(value)}" for name, value in attributes(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(given)})"

    def _repr_html_(self) -> str | None:
        """Return a picture for notebooks, which show the text where there is none."""
        try:
            values = sampled(self, _LENGTH)
        except (AttributeError, IndexError, TypeError, ValueError):  # made for other lengths, or for one library
            return None
        return pictured(repr(self), values)


def evaluated(bias: Bias, region: Region) -> Array:
    """Return the values of a bias in the dtype of the scores, and refuse what does not broadcast against them."""
    if has_diagonals(bias, region.frame) and region.sizes[-2] > 1:
        return _along_diagonals(bias, region)
    xp, values = region.xp, bias.values(region)
    check_result(xp, f"{type(bias).__name__}.values", values, region.sizes)
    return filled_up(xp, as_dtype(xp, values, region.frame.dtype), len(region.sizes))


def has_diagonals(bias: Bias, frame: Frame) -> bool:
    """Whether the values are the same along each diagonal of the pairs, and NumPy can give them without more memory."""
    return bias.shift_invariant and frame.keys_count_up and is_numpy_namespace(frame.xp)


def _along_diagonals(bias: Bias, region: Region) -> Array:
    """Return the values of the last row, for as many keys more as there are rows before it, and of these rows as views of it."""
    import numpy as np  # noqa: PLC0415  # the import of the package loads no array library

    *lead, m, n = region.sizes
    starts = *region.starts[:-2], region.starts[-2] + m - 1, region.starts[-1]
    last = evaluated(bias, region._replace(starts=starts, sizes=(*lead, 1, n + m - 1)))
    line = np.broadcast_to(last[..., 0, :], (*last.shape[:-2], n + m - 1))
    return np.lib.stride_tricks.sliding_window_view(line, n, axis=-1)[..., ::-1, :]


def gradients_of(bias: Bias, region: Region, grad_scores: Array) -> tuple[Array, ...]:
    """Return what `vjp` says of the arrays of a bias, and refuse what does not fit them; a bias may have no arrays."""
    expected = [tuple(array.shape) for array in bias.arrays]
    if not expected:
        return ()
    found: Any = bias.vjp(region, grad_scores)  # what a class of the user makes of it
    given = [tuple(getattr(piece, "shape", ())) for piece in found] if isinstance(found, tuple | list) else found
    if given != expected:
        raise ValueError(
            f"{type(bias).__name__}.vjp must return a gradient for each of the floating arrays of the bias, in the order of "
            f"its attributes: expected a tuple of the shapes {expected}, got {short(given)}"
        )
    return tuple(found)


def sampled(bias: Bias, length: int) -> Any:
    """Return the values for so many queries and keys from position 0 on, (H, length, length), as an array of NumPy.

    They are those of the first batch item; H is 1 where the values do not depend on the head.
    """
    import numpy as np  # noqa: PLC0415  # the import of the package loads no array library

    bias, lead, xp = on_host(bias), bias.lead, creation_namespace(None)
    frame = frame_of(xp, np.empty((length, 0), np.float32), lead[:-1], lead[-1] if lead else None, length)
    frame = replace(frame, query_offset=0, key_offset=0)
    bias.check(xp, frame.query, frame.batch, frame.heads)
    region = Region.whole(frame)
    values = np.broadcast_to(evaluated(bias, region), region.sizes)
    return values.reshape(-1, *values.shape[-3:] if lead else (1, length, length))[0]


def spread_over_lead(region: Region, gradients: Array, lead: tuple[int, ...]) -> Array:
    """Return the gradients of a region, (..., h, W), in an array for all batch items and heads, (*lead, W), 0 elsewhere.

    Axes that `lead` lacks, or has with length 1, are summed.
    """
    xp, width = region.xp, gradients.shape[-1]
    if region.frame.heads is None:
        gradients = xp.expand_dims(gradients, axis=-2)
    wanted = (1,) * (gradients.ndim - 1 - len(lead)) + lead
    for axis, length in enumerate(wanted):
        if length == 1:
            gradients = xp.sum(gradients, axis=axis, keepdims=True)
        elif gradients.shape[axis] != length:
            gradients = _placed(xp, gradients, axis, length, region.starts[axis])
    return xp.reshape(gradients, (*lead, width))


def _placed(xp: Namespace, a: Array, axis: int, length: int, start: Any) -> Array:
    """Return an array padded with zeros along an axis to a length, with its entries from `start` on, which may be traced."""
    before, size, after = a.shape[:axis], a.shape[axis], a.shape[axis + 1 :]
    every, here = (xp.arange(n, dtype=xp.int32, device=device(a)) for n in (length, size))
    is_here = xp.astype(every[:, None] == (here + start)[None, :], a.dtype)  # (length, size)
    placed = xp.matmul(is_here, xp.reshape(a, (math.prod(before), size, math.prod(after))))
    return xp.reshape(placed, (*before, length, *after))
