"""ONNX's ``RotaryEmbedding``."""

from typing import Any

from attention_xp._checks.arrays import check_integers, shapes
from attention_xp._checks.numbers import check_count
from attention_xp._heads import join
from attention_xp._public_types import Array, ArrayT
from attention_xp._rotary.cache import RotaryCache
from attention_xp._rotary.embedding import rotary_embedding as embed
from attention_xp.interop._border import named_as
from attention_xp.interop.onnx._inputs import check_axes, flag, heads_first, namespace_of

__all__ = ["rotary_embedding"]


@named_as(
    {
        "x": "X",
        "positions": "position_ids",
        "cache.cos": "cos_cache",
        "cache.sin": "sin_cache",
        "rotary_dim": "rotary_embedding_dim",
    }
)
def rotary_embedding(
    X: ArrayT,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> ArrayT:
    r"""Rotate pairs of features as ONNX's ``RotaryEmbedding`` does.

    .. math::

        y_a = \cos_i x_a - \sin_i x_b, \quad y_b = \sin_i x_a + \cos_i x_b

    for the pair :math:`(a, b) = (i, i + R/2)`, or :math:`(2i, 2i + 1)` with `interleaved`; features from :math:`R` on are
    handed through.

    Parameters
    ----------
    X : array
        ``(B, H, S, D)``, or ``(B, S, H * D)`` with `num_heads`.
    cos_cache, sin_cache : array
        ``(positions, R / 2)`` with `position_ids`, else ``(B, S, R / 2)``.
    position_ids : integer array, optional
        ``(B, S)``: which rows of the caches. Where they have none, the result is NaN; negative numbers do not count from
        the end.
    interleaved : int, default: 0
        1 pairs neighbouring features.
    num_heads : int, optional
        ``H``, required where `X` has three axes.
    rotary_embedding_dim : int, default: 0
        ``R``; 0 means ``D``.

    Returns
    -------
    array
        Shape, dtype and library of `X`. 16-bit input is rotated in float32, and rounded once.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit.

    References
    ----------
    RotaryEmbedding-23 of ONNX 1.23.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.onnx import rotary_embedding
    >>> angles = np.arange(10.0)[:, None] * np.asarray([1.0, 0.1])
    >>> rotary_embedding(np.ones((1, 3, 8)), np.cos(angles), np.sin(angles), np.asarray([[7, 8, 9]]), num_heads=2).shape
    (1, 3, 8)
    """
    xp = namespace_of({"X": X, "cos_cache": cos_cache, "sin_cache": sin_cache}, position_ids=position_ids)
    check_axes((3, 4), "X (B, H, S, D) or (B, S, H * D)", X=X)
    caches = {"cos_cache": cos_cache, "sin_cache": sin_cache}
    if position_ids is None:
        check_axes((3,), "without position_ids caches (B, S, R / 2)", **caches)
    else:
        check_axes((2,), "with position_ids caches (positions, R / 2)", **caches)
        check_integers(xp, "position_ids", position_ids)
    x: Any = X if X.ndim == 4 else heads_first(xp, "X", X, "num_heads", num_heads)
    if num_heads is not None and x.shape[1] != check_count("num_heads", num_heads):
        raise ValueError(f"num_heads is {num_heads}: expected X (B, {num_heads}, S, D), {shapes(X=X)}")
    width = check_count("rotary_embedding_dim", rotary_embedding_dim, low=0) or x.shape[-1]
    if 2 * cos_cache.shape[-1] != width:
        raise ValueError(
            f"cos_cache is for {2 * cos_cache.shape[-1]} features and not for {width}, which is "
            f"{'rotary_embedding_dim' if rotary_embedding_dim else 'the width of a head'}: {shapes(X=X, **caches)}"
        )
    found = embed(
        x, position_ids, interleaved=flag("interleaved", interleaved), cache=RotaryCache(cos_cache, sin_cache)
    )
    return found if X.ndim == 4 else join(found, xp)  # type: ignore[no-any-return]
