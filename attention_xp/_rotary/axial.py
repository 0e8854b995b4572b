"""Rotary position embeddings of images."""

from attention_xp._backend.libraries import common_namespace, device as device_of
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import ArrayT
from attention_xp._rotary.embedding import rotary_embedding
from attention_xp._rotary.scaling import RotaryScaling

__all__ = ["axial_rotary_embedding"]


def axial_rotary_embedding(
    x: ArrayT,
    height: int,
    width: int,
    *,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    scaling: RotaryScaling | None = None,
) -> ArrayT:
    r"""Rotate the features of the patches of an image by their row and by their column.

    The first half of the pairs turns by row, the other by column, each with the frequencies
    :math:`b^{-4i/R}`, :math:`0 \le i < R/4`. This is `rotary_embedding` with positions ``(2, S)``, ``sections=(R // 4,
    R // 4)`` and ``axial=True``.

    Parameters
    ----------
    x : array
        ``(S, D)``, ``(B, S, D)`` or ``(..., H, S, D)``, with ``S = height * width`` patches row by row.
    height, width : int
        Rows and columns of patches.
    base : float, default: 10000.0
        ``b``.
    rotary_dim : int, optional
        ``R``, a multiple of 4: the first ``R`` features are rotated. Default: ``D``.
    interleaved : bool, default: False
        Whether neighbouring features are paired, or those half of ``R`` apart.
    scaling : scaling, optional
        Changes the frequencies of both axes.

    Returns
    -------
    array
        Same shape and dtype as `x`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `rotary_dim` is no multiple of 4 or exceeds the width, or ``S`` is not ``height * width``.

    References
    ----------
    Heo et al., "Rotary position embedding for vision transformer", ECCV 2024.
    Wang et al., "Qwen2-VL: enhancing vision-language model's perception of the world at any resolution", 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import axial_rotary_embedding
    >>> patches = np.ones((2, 8, 6 * 9, 64))
    >>> axial_rotary_embedding(patches, 6, 9).shape
    (2, 8, 54, 64)
    """
    xp = common_namespace(x=x)
    height, width = check_count("height", height), check_count("width", width)
    if x.ndim < 2 or x.shape[-2] != height * width:
        raise ValueError(
            f"x must hold one row for each patch: expected x (..., S, D) with S = height * width = {height * width}, "
            f"{shapes(x=x)}"
        )
    rotary_dim = x.shape[-1] if rotary_dim is None else check_count("rotary_dim", rotary_dim)
    if rotary_dim == 0 or rotary_dim % 4:
        raise ValueError(f"rotary_dim must be a multiple of 4 for two axes, got {rotary_dim}, {shapes(x=x)}")
    patch = xp.arange(height * width, dtype=xp.int32, device=device_of(x))
    positions = xp.stack([patch // width, patch % width], axis=0)  # (2, S)
    return rotary_embedding(
        x, positions, base=base, rotary_dim=rotary_dim, interleaved=interleaved, scaling=scaling,
        sections=(rotary_dim // 4, rotary_dim // 4), axial=True,
    )  # fmt: skip
