"""Lower triangles by halves: the part of a square below its diagonal, split into squares of each scale.

The lower triangle of n rows is the lower triangles of its two halves and the square between them; and so
on within each half. At scale h that gives, in every block of 2 h rows, the square of the second h rows and
the first h columns. All squares of one scale are computed at once, which takes ``log2(n)`` products.
"""

from typing import NamedTuple

from attention_xp._backend.shapes import filled_up
from attention_xp._typing import Array, Device, DType, Namespace

__all__ = ["Triangle", "triangle", "unit_lower_inverse"]


class Triangle(NamedTuple):
    """The parts of the lower triangle of n rows, as numbers 0 and 1; n is a power of two."""

    lower: Array  # (..., n, n), all of it
    diagonal: Array  # (..., n, n)
    squares: tuple[tuple[int, Array], ...]  # of each scale h, (..., n, n)

    def whole(self, C: int) -> Array:
        """Return the triangle of the first `C` rows."""
        return self.lower[..., :C, :C]


def triangle(C: int, *, ndim: int, split: bool, xp: Namespace, dtype: DType, device: Device) -> Triangle:
    """Return the triangle of at least `C` rows, in `ndim` axes; with `split` its squares, of the scales 1, 2, 4, ..."""
    n = 1 << max(C - 1, 0).bit_length()  # the smallest power of two that is not below C
    index = xp.arange(n, dtype=xp.int32, device=device)
    row, column = filled_up(xp, index, ndim, behind=1), filled_up(xp, index, ndim)

    def squares(h: int) -> Array:
        return xp.astype((row // (2 * h) == column // (2 * h)) & (row // h > column // h), dtype)

    scales = [1 << i for i in range(n.bit_length() - 1)] if split else []
    lower, diagonal = xp.astype(row >= column, dtype), xp.astype(row == column, dtype)
    return Triangle(lower, diagonal, tuple((h, squares(h)) for h in scales))


def unit_lower_inverse(lower: Array, parts: Triangle, *, xp: Namespace) -> Array:
    """Return the inverse of ``I + lower``, (..., n, n), where `lower` is zero on and above the diagonal.

    By blocks, from small to large: ``[[A, 0], [X, B]]^-1 = [[A^-1, 0], [-B^-1 X A^-1, B^-1]]``. That is forward
    substitution, and as stable; powers of `lower`, which may be large, never appear.
    """
    n = lower.shape[-1]
    inverse = parts.diagonal[..., :n, :n]
    for h, mask in parts.squares:
        square = lower * mask[..., :n, :n]
        # The blocks of scale 1 are those of the identity.
        inverse = inverse - (square if h == 1 else xp.matmul(inverse, xp.matmul(square, inverse)))
    return inverse
