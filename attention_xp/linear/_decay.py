r"""The decay of memory within a chunk, and products of rows times the decay between them.

With log-decays :math:`g_t`, what is written at row s has by row t decayed by :math:`e^{g_{s+1}} \cdots e^{g_t}`.
They are computed directly, from the logs between s and t alone or by halves of the chunk, and never as a quotient of two
products from its start: if no decay exceeds 1, neither does any factor, nothing overflows, and rows after a strong decay
lose no digits.
"""

from attention_xp._backend.libraries import cumulative_sum, device
from attention_xp._typing import Array, Namespace
from attention_xp.linear._triangles import Triangle, joined, padded_rows, padded_square, split

__all__ = ["ChannelDecay", "HeadDecay", "NoDecay", "decay_of", "sum_ahead", "sum_before"]

FORGOTTEN = -1e30  # a log-decay that leaves nothing; 64 of them, and many more, still are a finite sum


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
    """The common part of decays of both widths; those of the chunk up to each row, and after it, are (..., C, 1 or D)."""

    _is_shared: bool  # by all channels
    _start: Array
    _end: Array

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
    """One decay for all channels of a head, g (..., C, 1): a factor of each product.

    The logs are summed from each column to each row, so that none is subtracted again.
    """

    _is_shared = True

    def __init__(self, g: Array, parts: Triangle, xp: Namespace) -> None:
        super().__init__(parts, xp)
        C = g.shape[-2]
        # -inf times the zeros of the triangle would be NaN.
        g = xp.maximum(g, xp.full((), FORGOTTEN, dtype=g.dtype, device=device(g)))
        self._fading = xp.exp(cumulative_sum(xp, g * parts.strict(C), axis=-2)) * parts.whole(C)
        self._start = xp.exp(g[..., :1, :]) * self._fading[..., :1]
        self._end = xp.matrix_transpose(self._fading[..., -1:, :])

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, times the decay from s to t; 0 where s > t."""
        return self.xp.matmul(x, self.xp.matrix_transpose(y)) * self._fading

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp, below = self.xp, self.parts.strict(x.shape[-2])
        grad = grad * self._fading
        gradient = grad * xp.matmul(x, xp.matrix_transpose(y)) * below  # of the sum from s to t
        of_logs = xp.sum(sum_ahead(gradient, xp) * below, axis=-1, keepdims=True)
        return xp.matmul(grad, y), xp.matmul(xp.matrix_transpose(grad), x), of_logs


class ChannelDecay(_Fading):
    """A decay for each channel, g (..., C, D): each square of the triangle is a product of rows times their decays.

    A square has a border, where its columns end and its rows begin. The decay from a column to a row is that from the
    column to the border, times that from the border to the row.
    """

    _is_shared = False

    def __init__(self, g: Array, parts: Triangle, xp: Namespace) -> None:
        super().__init__(parts, xp)
        C, n = g.shape[-2], parts.lower.shape[-1]
        to_row = xp.exp(padded_rows(g, parts, xp))  # from the start of its block up to a row
        to_end = xp.ones_like(to_row)  # from a row to the end of its block
        self._squares = []  # of each scale h: from the border to rows, and from columns to the border
        for h in (1 << i for i in range(n.bit_length() - 1)):
            (first, second), (before, after) = _halves(to_row, h, xp), _halves(to_end, h, xp)
            self._squares.append((h, second, before))
            to_row = _whole(first, second * first[..., -1:, :], xp)
            to_end = _whole(before * second[..., -1:, :], after, xp)
        self._start, self._end = to_row[..., :C, :], to_end[..., :C, :]

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, times the decay from s to t; 0 where s > t."""
        xp, C = self.xp, x.shape[-2]
        x, y = (padded_rows(rows, self.parts, xp) for rows in (x, y))
        blocks = xp.expand_dims(xp.sum(x * y, axis=-1, keepdims=True), axis=-1)  # of the diagonal alone
        for h, to_row, to_border in self._squares:
            late, early = _halves(x, h, xp)[1] * to_row, _halves(y, h, xp)[0] * to_border
            blocks = joined(blocks, xp.matmul(late, xp.matrix_transpose(early)), xp)
        return blocks[..., 0, :C, :C]

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp, C, T = self.xp, x.shape[-2], self.xp.matrix_transpose
        x, y = (padded_rows(rows, self.parts, xp) for rows in (x, y))
        blocks = xp.expand_dims(padded_square(grad, self.parts, xp), axis=-3)
        of_x, of_y, of_logs = [], [], []
        for h, to_row, to_border in reversed(self._squares):
            blocks, squares = split(blocks, xp)
            late, early = _halves(x, h, xp)[1], _halves(y, h, xp)[0]
            of_late = xp.matmul(squares, early * to_border) * to_row
            of_early = xp.matmul(T(squares), late * to_row) * to_border
            none = xp.zeros_like(of_late)
            of_x.append(_whole(none, of_late, xp))
            of_y.append(_whole(of_early, none, xp))
            of_logs.append(_whole(sum_before(of_early * early, xp), sum_ahead(of_late * late, xp), xp))
        own = blocks[..., 0]  # (..., n, 1), the diagonal
        sums = sum(of_x, own * y), sum(of_y, own * x), sum(of_logs, xp.zeros_like(x))
        of_x, of_y, of_logs = (total[..., :C, :] for total in sums)
        return of_x, of_y, of_logs


def _halves(x: Array, h: int, xp: Namespace) -> tuple[Array, Array]:
    """Return the first and the second half of each block of 2 h rows, (..., n / 2 h, h, D)."""
    blocks = xp.reshape(x, (*x.shape[:-2], x.shape[-2] // (2 * h), 2, h, x.shape[-1]))
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def _whole(first: Array, second: Array, xp: Namespace) -> Array:
    """Return the rows of which these are the halves of blocks, (..., n, D)."""
    *lead, m, h, D = first.shape
    return xp.reshape(xp.concat([first, second], axis=-2), (*lead, 2 * m * h, D))


def decay_of(g: Array | None, parts: Triangle, xp: Namespace) -> NoDecay:
    """Return the decay that log-decays (..., C, 1 or D) stand for."""
    if g is None:
        return NoDecay(parts, xp)
    return (HeadDecay if g.shape[-1] == 1 else ChannelDecay)(g, parts, xp)
