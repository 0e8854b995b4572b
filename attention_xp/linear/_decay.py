r"""The decay of memory within a chunk, and products of rows times the decay between them.

With log-decays :math:`g_t`, what is written at row s has by row t decayed by :math:`e^{g_{s+1}} \cdots e^{g_t}`.
These products are computed directly, by halves of the chunk, and never as a quotient of two products from its start: if no
decay exceeds 1, neither does any factor, nothing overflows, and rows after a strong decay lose no digits.
"""

from collections.abc import Callable

from attention_xp._backend.libraries import cumulative_sum, padded
from attention_xp._typing import Array, Namespace
from attention_xp.linear._triangles import Triangle

__all__ = ["ChannelDecay", "HeadDecay", "NoDecay", "decay_of", "sum_ahead", "sum_before"]


def sum_ahead(x: Array, xp: Namespace) -> Array:
    """Return the sums of the rows from each on, itself included."""
    return xp.flip(cumulative_sum(xp, xp.flip(x, axis=-2), axis=-2), axis=-2)


def sum_before(x: Array, xp: Namespace) -> Array:
    """Return the sums of the rows before each."""
    return cumulative_sum(xp, x, axis=-2, include_initial=True)[..., :-1, :]


class NoDecay:
    """Memory that stays; x and y are (..., C, D) and memory is (..., D, Dv)."""

    def __init__(self, parts: Triangle, xp: Namespace) -> None:
        self.parts, self.xp = parts, xp

    def from_start(self, x: Array) -> Array:
        """Return each row times the decay from the start of the chunk up to it."""
        return x

    def to_end(self, x: Array) -> Array:
        """Return each row times the decay after it, to the end of the chunk."""
        return x

    def whole(self, memory: Array) -> Array:
        """Return memory times the decay of the whole chunk."""
        return memory

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, times the decay from s to t; 0 where s > t."""
        return self.xp.matmul(x, self.xp.matrix_transpose(y)) * self.parts.whole(x.shape[-2])

    def from_start_vjp(self, x: Array, grad: Array) -> tuple[Array, Array | None]:  # noqa: ARG002  # of no decay
        """Return the gradients of x and of the log-decays."""
        return grad, None

    def to_end_vjp(self, x: Array, grad: Array) -> tuple[Array, Array | None]:  # noqa: ARG002  # of no decay
        """Return the gradients of x and of the log-decays."""
        return grad, None

    def whole_vjp(self, memory: Array, grad: Array) -> tuple[Array, Array | None]:  # noqa: ARG002  # of no decay
        """Return the gradients of the memory and of the log-decays."""
        return grad, None

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp = self.xp
        grad = grad * self.parts.whole(x.shape[-2])
        return xp.matmul(grad, y), xp.matmul(xp.matrix_transpose(grad), x), None


class _Fading(NoDecay):
    """The common part of decays of both widths; g is (..., C, 1) or (..., C, D).

    Each square of the triangle has a border, where its columns end and its rows begin. The decay from a column to a row is
    that from the column to the border, times that from the border to the row.
    """

    def __init__(self, g: Array, parts: Triangle, xp: Namespace) -> None:
        super().__init__(parts, xp)
        C, self._is_shared = g.shape[-2], g.shape[-1] == 1
        to_row = xp.exp(self._padded(g))  # from the start of its block up to a row
        to_border = xp.ones_like(to_row)  # from a row to the end of its block
        self._squares = []
        for h, mask in parts.squares:
            self._squares.append((h, mask, to_row, to_border))
            to_row, to_border = _doubled(to_row, to_border, h, xp)
        self._start, self._end = to_row[..., :C, :], to_border[..., :C, :]

    def _padded(self, x: Array) -> Array:
        """Append rows of zeros up to a power of two, so that blocks of all sizes fit."""
        missing = self.parts.diagonal.shape[-1] - x.shape[-2]
        return x if missing == 0 else padded(self.xp, x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])

    def from_start(self, x: Array) -> Array:
        return x * self._start

    def to_end(self, x: Array) -> Array:
        return x * self._end

    def whole(self, memory: Array) -> Array:
        return self.xp.matrix_transpose(self._start[..., -1:, :]) * memory

    def from_start_vjp(self, x: Array, grad: Array) -> tuple[Array, Array | None]:
        grad = grad * self._start
        return grad, sum_ahead(self._of_logs(grad * x), self.xp)

    def to_end_vjp(self, x: Array, grad: Array) -> tuple[Array, Array | None]:
        grad = grad * self._end
        return grad, sum_before(self._of_logs(grad * x), self.xp)

    def whole_vjp(self, memory: Array, grad: Array) -> tuple[Array, Array | None]:
        grad = self.whole(grad)
        gradient = self.xp.sum(grad * memory, axis=-1, keepdims=True)  # (..., D, 1)
        return grad, self._of_logs(self.xp.matrix_transpose(gradient))  # the same for every row

    def _of_logs(self, gradient: Array) -> Array:
        """Sum over the channels that share a decay."""
        return self.xp.sum(gradient, axis=-1, keepdims=True) if self._is_shared else gradient


class HeadDecay(_Fading):
    """One decay for all channels of a head, g (..., C, 1): a factor of each product."""

    def __init__(self, g: Array, parts: Triangle, xp: Namespace) -> None:
        super().__init__(g, parts, xp)
        C, fading = g.shape[-2], parts.diagonal
        for _, mask, to_row, to_border in self._squares:
            fading = fading + to_row * xp.matrix_transpose(to_border) * mask
        self._fading = fading[..., :C, :C]

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, times the decay from s to t; 0 where s > t."""
        return self.xp.matmul(x, self.xp.matrix_transpose(y)) * self._fading

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp = self.xp
        grad = grad * self._fading
        gradient = xp.tril(grad * xp.matmul(x, xp.matrix_transpose(y)), k=-1)  # of the sum from s to t
        of_logs = xp.sum(xp.tril(sum_ahead(gradient, xp), k=-1), axis=-1, keepdims=True)
        return xp.matmul(grad, y), xp.matmul(xp.matrix_transpose(grad), x), of_logs


class ChannelDecay(_Fading):
    """A decay for each channel, g (..., C, D): each square of the triangle is a product of rows times their decays."""

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, times the decay from s to t; 0 where s > t."""
        xp, C = self.xp, x.shape[-2]
        x, y = self._padded(x), self._padded(y)
        total = xp.sum(x * y, axis=-1, keepdims=True) * self.parts.diagonal
        for _, mask, to_row, to_border in self._squares:
            total = total + xp.matmul(x * to_row, xp.matrix_transpose(y * to_border)) * mask
        return total[..., :C, :C]

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp, C = self.xp, x.shape[-2]
        x, y, grad = self._padded(x), self._padded(y), self._padded_square(grad)
        own = xp.sum(grad * self.parts.diagonal, axis=-1, keepdims=True)
        of_x, of_y, of_logs = own * y, own * x, xp.zeros_like(x)
        for h, mask, to_row, to_border in self._squares:
            part = grad * mask
            late = xp.matmul(part, y * to_border) * to_row
            early = xp.matmul(xp.matrix_transpose(part), x * to_row) * to_border
            of_x, of_y = of_x + late, of_y + early
            rows, columns = late * x, early * y
            of_logs = of_logs + _in_blocks(sum_ahead, rows, h, xp) + _in_blocks(sum_before, columns, h, xp)
        return of_x[..., :C, :], of_y[..., :C, :], of_logs[..., :C, :]

    def _padded_square(self, grad: Array) -> Array:
        return self._padded(self.xp.matrix_transpose(self._padded(self.xp.matrix_transpose(grad))))


def _doubled(to_row: Array, to_border: Array, h: int, xp: Namespace) -> tuple[Array, Array]:
    """Return the products from the start, and to the end, of blocks twice as long."""
    (first, second), (before, after) = _halves(to_row, h, xp), _halves(to_border, h, xp)
    to_row_ = xp.concat([first, second * first[..., -1:, :]], axis=-2)
    to_border_ = xp.concat([before * second[..., -1:, :], after], axis=-2)
    return xp.reshape(to_row_, to_row.shape), xp.reshape(to_border_, to_border.shape)


def _halves(x: Array, h: int, xp: Namespace) -> tuple[Array, Array]:
    """Return the first and the second half of each block of 2 h rows."""
    blocks = xp.reshape(x, (*x.shape[:-2], x.shape[-2] // (2 * h), 2, h, x.shape[-1]))
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def _in_blocks(sums: Callable[[Array, Namespace], Array], x: Array, h: int, xp: Namespace) -> Array:
    """Return sums of rows within blocks of h rows."""
    blocks = xp.reshape(x, (*x.shape[:-2], x.shape[-2] // h, h, x.shape[-1]))
    return xp.reshape(sums(blocks, xp), x.shape)


def decay_of(g: Array | None, parts: Triangle, xp: Namespace) -> NoDecay:
    """Return the decay that log-decays (..., C, 1 or D) stand for."""
    if g is None:
        return NoDecay(parts, xp)
    return (HeadDecay if g.shape[-1] == 1 else ChannelDecay)(g, parts, xp)
