"""Lower triangles by halves: the part of a square below its diagonal, split into squares of each scale.

The lower triangle of n rows is the lower triangles of its two halves and the square between them; and so
on within each half. Blocks (..., m, h, h) are m squares along the diagonal, and those of one scale are computed at
once: `split` goes to blocks half as wide, `joined` to such twice as wide.
"""

from typing import NamedTuple

from attention_xp._backend.libraries import padded
from attention_xp._backend.shapes import filled_up
from attention_xp._typing import Array, Device, DType, Namespace

__all__ = ["Triangle", "joined", "padded_rows", "padded_square", "split", "triangle", "unit_lower_inverse"]

SMALL = 16  # rows of the blocks within which a mask over all of them is faster than to go on halving


class Triangle(NamedTuple):
    """The parts of the lower triangle of n rows, as numbers 0 and 1; n is a power of two."""

    lower: Array  # (..., n, n), all of it
    below: Array  # (..., n, n), without the diagonal
    diagonal: Array  # (..., n, n)
    squares: tuple[tuple[int, Array], ...]  # in a small block, of each scale h, (..., 1, small, small)

    def whole(self, C: int) -> Array:
        """Return the triangle of the first `C` rows."""
        return self.lower[..., :C, :C]

    def strict(self, C: int) -> Array:
        """Return the triangle of the first `C` rows without its diagonal."""
        return self.below[..., :C, :C]


def triangle(C: int, *, ndim: int, split: bool, xp: Namespace, dtype: DType, device: Device) -> Triangle:
    """Return the triangle of at least `C` rows, in `ndim` axes; with `split` its squares, of the scales 1, 2, 4, ..."""
    n = 1 << max(C - 1, 0).bit_length()  # the smallest power of two that is not below C
    index = xp.arange(n, dtype=xp.int32, device=device)
    row, column = filled_up(xp, index, ndim, behind=1), filled_up(xp, index, ndim)
    small = min(n, SMALL)
    within = filled_up(xp, index[:small], ndim + 1, behind=1), filled_up(xp, index[:small], ndim + 1)

    def squares(h: int) -> Array:
        row, column = within
        return xp.astype((row // (2 * h) == column // (2 * h)) & (row // h > column // h), dtype)

    scales = [1 << i for i in range(small.bit_length() - 1)] if split else []
    lower, below, diagonal = (xp.astype(part, dtype) for part in (row >= column, row > column, row == column))
    return Triangle(lower, below, diagonal, tuple((h, squares(h)) for h in scales))


def padded_rows(x: Array, parts: Triangle, xp: Namespace) -> Array:
    """Append rows of zeros up to those of the triangle."""
    missing = parts.lower.shape[-1] - x.shape[-2]
    return x if missing == 0 else padded(xp, x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])


def padded_square(x: Array, parts: Triangle, xp: Namespace) -> Array:
    """Append rows and columns of zeros up to those of the triangle."""
    missing = parts.lower.shape[-1] - x.shape[-2]
    return x if missing == 0 else padded(xp, x, [(0, 0)] * (x.ndim - 2) + [(0, missing)] * 2)


def split(blocks: Array, xp: Namespace) -> tuple[Array, Array]:
    """(..., m, 2 h, 2 h) -> blocks on the diagonal (..., 2 m, h, h), and the squares between them (..., m, h, h)."""
    *lead, m, width, _ = blocks.shape
    h = width // 2
    halves = xp.stack([blocks[..., :h, :h], blocks[..., h:, h:]], axis=-3)
    return xp.reshape(halves, (*lead, 2 * m, h, h)), blocks[..., h:, :h]


def joined(blocks: Array, squares: Array, xp: Namespace) -> Array:
    """Put squares (..., m, h, h) between blocks (..., 2 m, h, h); zeros above: (..., m, 2 h, 2 h)."""
    lead = tuple(squares.shape[:-3])
    if tuple(blocks.shape[:-3]) != lead:
        blocks = xp.broadcast_to(blocks, (*lead, *blocks.shape[-3:]))
    first, second = blocks[..., 0::2, :, :], blocks[..., 1::2, :, :]
    upper = xp.concat([first, xp.zeros_like(first)], axis=-1)
    return xp.concat([upper, xp.concat([squares, second], axis=-1)], axis=-2)


def unit_lower_inverse(lower: Array, parts: Triangle, *, xp: Namespace) -> Array:
    """Return the inverse of ``I + tril(lower, -1)``, (..., C, C); what lies on and above the diagonal is not read.

    By blocks, from small to large: ``[[A, 0], [X, B]]^-1 = [[A^-1, 0], [-B^-1 X A^-1, B^-1]]``. That is forward
    substitution, and as stable; powers of `lower`, which may be large, never appear.
    """
    C = lower.shape[-1]
    blocks = xp.expand_dims(padded_square(lower, parts, xp), axis=-3)
    between = []
    while blocks.shape[-1] > SMALL:
        blocks, squares = split(blocks, xp)
        between.append(squares)
    inverse = _inverse_within(blocks, parts, xp)
    for squares in reversed(between):
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        inverse = joined(inverse, -xp.matmul(second, xp.matmul(squares, first)), xp)
    return inverse[..., 0, :C, :C]


def _inverse_within(blocks: Array, parts: Triangle, xp: Namespace) -> Array:
    """Return the inverses of small blocks, the same way with masks."""
    small = blocks.shape[-1]
    inverse = xp.expand_dims(parts.diagonal[..., :small, :small], axis=-3)
    for h, mask in parts.squares:
        squares = blocks * mask
        # The blocks of scale 1 are those of the identity.
        inverse = inverse - (squares if h == 1 else xp.matmul(inverse, xp.matmul(squares, inverse)))
    return inverse
