"""Linear biases: scores fall with the distance."""

from typing import ClassVar

from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, fits, shapes
from attention_xp._scores.region import Region
from attention_xp._typing import Array, Namespace
from attention_xp.biases._bias import Bias, spread_over_lead
from attention_xp.masks._pairs import rule

__all__ = ["AlibiBias"]


@rule
class AlibiBias(Bias):
    r"""Attention with linear biases: every head lowers the score of a pair by its slope times their distance.

    .. math:: b_{hqk} = -m_h \, |q - k|

    where :math:`q` and :math:`k` are positions: that of a query is its row plus the ``query_offset``, and keys
    count from 0 unless the call gives them others. In a causal model :math:`k \le q`, and the rule is that of the paper.

    Parameters
    ----------
    slopes : array
        :math:`m`, ``(H,)``; `alibi_slopes` gives those of the paper. ``(B, H)``, the batch shape before the heads, has
        slopes for each batch item. An axis of length 1 is for all heads, or items; one number, ``()`` or ``(1,)``, is for
        all, or for inputs without a heads axis.

    Raises
    ------
    TypeError
        If `slopes` is no floating array.
    ValueError
        When it is used, if `slopes` does not broadcast to batch and heads.

    References
    ----------
    Press et al., "Train short, test long: attention with linear biases enables input length extrapolation",
    ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import alibi_slopes, flash_attention
    >>> from attention_xp.biases import AlibiBias
    >>> x = np.ones((2, 8, 16, 64))
    >>> flash_attention(x, x, x, bias=AlibiBias(alibi_slopes(8)), is_causal=True).shape
    (2, 8, 16, 64)
    """

    slopes: Array
    may_exclude = False
    shift_invariant = True
    _axes: ClassVar = {"slopes": "bh"}

    def __init__(self, slopes: Array) -> None:
        check_floating(common_namespace(slopes=slopes), slopes=slopes)
        self.slopes = slopes

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the shape of the slopes."""
        return tuple(self.slopes.shape)

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:
        """Check library, device and the numbers of batch items and heads."""
        super().check(xp, query, batch, heads)
        expected = (*batch, 1 if heads is None else heads)
        if not fits(tuple(self.slopes.shape), expected):
            given = "(B, 1) with no heads axis" if heads is None else "(H,) or (B, H)"
            raise ValueError(
                f"slopes must hold one number per head, or per batch item and head: expected slopes {given}, up to "
                f"{expected}, {shapes(query=query, slopes=self.slopes)}"
            )

    def values(self, region: Region) -> Array:
        """Return the distances times the slopes, negative."""
        return -region.per_head(self.slopes) * _distance(region)

    def bound(self, region: Region) -> float:
        """Return the largest slope times the largest distance."""
        xp = region.xp
        q, k = region.q_idx, region.kv_idx
        farthest = max(abs(int(xp.max(q)) - int(xp.min(k))), abs(int(xp.max(k)) - int(xp.min(q))))
        return farthest * float(xp.max(xp.abs(region.per_head(self.slopes))))

    def vjp(self, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Sum up the gradient times the distances, for each head, and each batch item where slopes tell them apart."""
        xp = region.xp
        gradients = -xp.sum(grad_scores * _distance(region), axis=(-2, -1))  # (..., h)
        shape = tuple(self.slopes.shape)
        return (xp.reshape(spread_over_lead(region, xp.expand_dims(gradients, axis=-1), shape), shape),)


def _distance(region: Region) -> Array:
    return region.floating(region.xp.abs(region.q_idx - region.kv_idx))
