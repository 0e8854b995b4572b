"""Move trained projections from one pairing of rotary position embeddings to the other."""

from typing import Literal

from attention_xp._backend.libraries import common_namespace, device as device_of
from attention_xp._checks.arrays import check_floating, shapes
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import ArrayT
from attention_xp._rotary.cache import check_rotary_dim

__all__ = ["permute_rotary_weights"]


def permute_rotary_weights(
    w: ArrayT,
    num_heads: int,
    *,
    to: Literal["interleaved", "half"],
    rotary_dim: int | None = None,
    axis: int = -1,
) -> ArrayT:
    r"""Reorder the features that a projection gives, so that the other pairing rotates them.

    .. math:: 2i \leftrightarrow i, \qquad 2i + 1 \leftrightarrow i + R/2, \qquad 0 \le i < R/2

    within each head, for :math:`R` rotated features: on the left the place in the interleaved pairing, on the right that
    in the pairing of halves.

    Checkpoints are trained with one pairing. With the weights and biases of query and key permuted, `rotary_embedding`
    with the other pairing gives the same scores.

    Parameters
    ----------
    w : array
        ``(d_in, H * D)`` weights, applied as ``x @ w``, or an ``(H * D,)`` bias.
    num_heads : int
        ``H``; for keys and values the number of their heads.
    to : {"interleaved", "half"}
        The pairing that the result is for: neighbouring features (``interleaved=True``), or features half of
        `rotary_dim` apart (``interleaved=False``). `w` is for the other one.
    rotary_dim : int, optional
        Number of features of a head that are rotated; the others keep their places. Default: ``D``.
    axis : int, default: -1
        The axis of the features: 0 for weights ``(H * D, d_in)``, as ``torch.nn.Linear`` keeps them.

    Returns
    -------
    array
        ``(d_in, H * D)`` or ``(H * D,)`` like `w`, with its dtype, library and device.

    Raises
    ------
    TypeError
        If `w` is no floating array, or a size is no int.
    ValueError
        If the features are not divisible by `num_heads`, `rotary_dim` is odd or exceeds ``D``, or `to` is no pairing.

    References
    ----------
    Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021: neighbours are paired. GPT-NeoX pairs
    halves, and so does Llama in the ``transformers`` library, which permutes the weights of Meta's checkpoints like this.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import permute_rotary_weights
    >>> permute_rotary_weights(np.arange(12.0), num_heads=2, to="half", rotary_dim=4)
    array([ 0.,  2.,  1.,  3.,  4.,  5.,  6.,  8.,  7.,  9., 10., 11.])
    """
    xp = common_namespace(w=w)
    check_floating(xp, w=w)
    heads, axis = check_count("num_heads", num_heads), check_count("axis", axis, low=-w.ndim)
    if axis >= w.ndim:
        raise ValueError(f"axis must be one of w, got axis {axis}, {shapes(w=w)}")
    if w.shape[axis] % heads:
        raise ValueError(f"axis {axis} of w must be divisible by num_heads, got num_heads {heads}, {shapes(w=w)}")
    width = w.shape[axis] // heads
    rotary_dim = check_rotary_dim(width if rotary_dim is None else rotary_dim)
    if rotary_dim > width:
        raise ValueError(f"rotary_dim is {rotary_dim} but a head has width {width}, {shapes(w=w)}")
    head = _order(rotary_dim, to) + list(range(rotary_dim, width))
    order = [h * width + feature for h in range(heads) for feature in head]
    return xp.take(w, xp.asarray(order, dtype=xp.int32, device=device_of(w)), axis=axis)


def _order(rotary_dim: int, to: str) -> list[int]:
    """Return which feature comes to each place of a head."""
    if to == "half":
        return [*range(0, rotary_dim, 2), *range(1, rotary_dim, 2)]
    if to == "interleaved":
        return [feature for i in range(rotary_dim // 2) for feature in (i, i + rotary_dim // 2)]
    raise ValueError(f"to must be 'interleaved' or 'half', got {to!r}")
