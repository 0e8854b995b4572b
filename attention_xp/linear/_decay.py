r"""How memory fades within a chunk, and the products of rows that fade in between.

With log-decays :math:`g_t`, what was written at row s has by row t faded by
:math:`\exp(g_{s+1} + \dots + g_t)`. Only sums of that kind are taken, never a difference of two sums from the
start: where nothing grows, no exponent is positive, nothing overflows, and a strong decay costs the rows
after it no digits.
"""

from collections.abc import Callable

from attention_xp._typing import Array, Namespace
from attention_xp.linear._triangles import Triangle, power_of_two

__all__ = ["ChannelDecay", "HeadDecay", "NoDecay", "decay_of", "sum_ahead"]


def sum_up_to(x: Array, xp: Namespace) -> Array:
    """Return the sums of the rows up to each, itself included."""
    return xp.cumulative_sum(x, axis=-2)


def sum_ahead(x: Array, xp: Namespace) -> Array:
    """Return the sums of the rows from each on, itself included."""
    return xp.flip(xp.cumulative_sum(xp.flip(x, axis=-2), axis=-2), axis=-2)


def sum_before(x: Array, xp: Namespace) -> Array:
    """Return the sums of the rows before each."""
    return xp.concat([xp.zeros_like(x[..., :1, :]), sum_up_to(x, xp)[..., :-1, :]], axis=-2)


def sum_after(x: Array, xp: Namespace) -> Array:
    """Return the sums of the rows after each."""
    return xp.concat([sum_ahead(x, xp)[..., 1:, :], xp.zeros_like(x[..., :1, :])], axis=-2)


class NoDecay:
    """Memory that stays; x and y are (..., C, D) and memory is (..., D, Dv)."""

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def from_start(self, x: Array) -> Array:
        """Return each row faded by what happens from the start of the chunk up to it."""
        return x

    def to_end(self, x: Array) -> Array:
        """Return each row faded by what happens after it."""
        return x

    def whole(self, memory: Array) -> Array:
        """Return memory faded by the whole chunk."""
        return memory

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, faded from s to t; 0 where s > t."""
        return self.xp.tril(self.xp.matmul(x, self.xp.matrix_transpose(y)))

    def from_start_vjp(self, x: Array, grad: Array) -> tuple[Array, Array | None]:
        """Return the gradients of x and of the log-decays."""
        return grad, None

    def to_end_vjp(self, x: Array, grad: Array) -> tuple[Array, Array | None]:
        """Return the gradients of x and of the log-decays."""
        return grad, None

    def whole_vjp(self, memory: Array, grad: Array) -> tuple[Array, Array | None]:
        """Return the gradients of the memory and of the log-decays."""
        return grad, None

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp = self.xp
        grad = xp.tril(grad)
        return xp.matmul(grad, y), xp.matmul(xp.matrix_transpose(grad), x), None


class _Fading(NoDecay):
    """What decays of both widths share; g is (..., C, 1) or (..., C, D)."""

    def __init__(self, g: Array, xp: Namespace) -> None:
        super().__init__(xp)
        self.g = g
        self._start, self._end = xp.exp(sum_up_to(g, xp)), xp.exp(sum_after(g, xp))

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
        slope = self.xp.sum(grad * memory, axis=-1, keepdims=True)  # (..., D, 1)
        return grad, self._of_logs(self.xp.matrix_transpose(slope))  # the same for every row

    def _of_logs(self, slope: Array) -> Array:
        """Sum over the channels that share a decay."""
        return self.xp.sum(slope, axis=-1, keepdims=True) if self.g.shape[-1] == 1 else slope


class HeadDecay(_Fading):
    """One decay for all channels of a head, g (..., C, 1): the products fade as a whole."""

    def __init__(self, g: Array, xp: Namespace) -> None:
        super().__init__(g, xp)
        # Column s sums the decays of the rows after s alone.
        after = xp.tril(xp.broadcast_to(g, (*g.shape[:-1], g.shape[-2])), k=-1)
        self._fading = xp.tril(xp.exp(sum_up_to(after, xp)))  # (..., C, C)

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, faded from s to t; 0 where s > t."""
        return self.xp.matmul(x, self.xp.matrix_transpose(y)) * self._fading

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp = self.xp
        grad = grad * self._fading
        slope = xp.tril(grad * xp.matmul(x, xp.matrix_transpose(y)), k=-1)  # of the sum from s to t
        of_logs = xp.sum(xp.tril(sum_ahead(slope, xp), k=-1), axis=-1, keepdims=True)
        return xp.matmul(grad, y), xp.matmul(xp.matrix_transpose(grad), x), of_logs


class ChannelDecay(_Fading):
    """A decay for each channel, g (..., C, D): x fades back, and y on, to a border between the two.

    In each square of the triangle, the border is where its columns end and its rows begin.
    """

    def __init__(self, g: Array, parts: Triangle, xp: Namespace) -> None:
        super().__init__(g, xp)
        self._diagonal = parts.diagonal
        g = self._padded(g)
        self._squares = [
            (h, mask, xp.exp(_in_blocks(sum_up_to, g, h, xp)), xp.exp(_in_blocks(sum_after, g, h, xp)))
            for h, mask in parts.squares
        ]

    def _padded(self, x: Array) -> Array:
        """Append rows of zeros up to a power of two, so that blocks of all scales fit."""
        missing = self._diagonal.shape[0] - x.shape[-2]
        return x if missing == 0 else self.xp.concat([x, *[self.xp.zeros_like(x[..., :1, :])] * missing], axis=-2)

    def scores(self, x: Array, y: Array) -> Array:
        """Return the products of row t of x and row s of y, faded from s to t; 0 where s > t."""
        xp, C = self.xp, x.shape[-2]
        x, y = self._padded(x), self._padded(y)
        total = xp.sum(x * y, axis=-1, keepdims=True) * self._diagonal
        for _, mask, to_row, to_border in self._squares:
            total = total + xp.matmul(x * to_row, xp.matrix_transpose(y * to_border)) * mask
        return total[..., :C, :C]

    def scores_vjp(self, x: Array, y: Array, grad: Array) -> tuple[Array, Array, Array | None]:
        """Return the gradients of x, of y and of the log-decays."""
        xp, C = self.xp, x.shape[-2]
        x, y, grad = self._padded(x), self._padded(y), self._padded_square(grad)
        own = xp.sum(grad * self._diagonal, axis=-1, keepdims=True)
        of_x, of_y, of_logs = own * y, own * x, 0.0
        for h, mask, to_row, to_border in self._squares:
            part = grad * mask
            late = xp.matmul(part, y * to_border) * to_row
            early = xp.matmul(xp.matrix_transpose(part), x * to_row) * to_border
            of_x, of_y = of_x + late, of_y + early
            rows, columns = late * x, early * y
            of_logs = of_logs + _in_blocks(sum_ahead, rows, h, xp) + _in_blocks(sum_before, columns, h, xp)
        of_logs = of_logs if len(self._squares) else None
        return of_x[..., :C, :], of_y[..., :C, :], None if of_logs is None else of_logs[..., :C, :]

    def _padded_square(self, grad: Array) -> Array:
        return self._padded(self.xp.matrix_transpose(self._padded(self.xp.matrix_transpose(grad))))


def _in_blocks(sums: Callable[[Array, Namespace], Array], x: Array, h: int, xp: Namespace) -> Array:
    """Return sums of rows within blocks of h rows."""
    blocks = xp.reshape(x, (*x.shape[:-2], x.shape[-2] // h, h, x.shape[-1]))
    return xp.reshape(sums(blocks, xp), x.shape)


def decay_of(g: Array | None, parts: Triangle | None, xp: Namespace) -> NoDecay:
    """Return the decay that log-decays (..., C, 1 or D) stand for."""
    if g is None:
        return NoDecay(xp)
    return HeadDecay(g, xp) if g.shape[-1] == 1 else ChannelDecay(g, parts, xp)
