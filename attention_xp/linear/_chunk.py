r"""One chunk of the sequence by products of matrices: its output, the memory after it, and the gradients of both.

With log-decays summed up to each row, :math:`G_t`, memory :math:`M` before the chunk, and the masked products
:math:`P = \mathrm{tril}(Q K^T)` and :math:`N = \mathrm{tril}_{-1}(K K^T)`, times the decay between their rows:

.. math::

    (I + \beta N) U &= \beta (V - (K e^{G}) M) \qquad \text{or } U = V \\
    O &= (Q e^{G}) M + P U \\
    M' &= e^{G_C} M + (K e^{G_C - G})^T U

A chunk of one row is the recurrence itself. The triangular system is the WY form of the delta rule (Yang, Wang,
Zhang, Shen and Kim, "Parallelizing linear transformers with the delta rule over sequence length", NeurIPS 2024;
Yang, Kautz and Hatamizadeh, "Gated delta networks", ICLR 2025).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device
from attention_xp._backend.shapes import summed_to
from attention_xp._softmax import nonzero
from attention_xp._typing import Array, DType, Namespace
from attention_xp.linear._decay import decay_of, sum_ahead
from attention_xp.linear._feature_maps import RowMap
from attention_xp.linear._scan import Rows
from attention_xp.linear._triangles import Triangle, unit_lower_inverse

__all__ = ["Carry", "Chunk", "Setting", "answer", "answer_vjp", "weights_sum"]


class Carry(NamedTuple):
    """The state that passes from chunk to chunk."""

    memory: Array  # (..., D, Dv)
    key_sum: Any  # (..., 1, D), or None where it is not needed


class Setting(NamedTuple):
    """The parameters that all chunks of a call share."""

    xp: Namespace
    dtype: DType
    feature_map: RowMap | None
    scale: float | Array
    normalize: bool
    triangle_of: Callable[[int], Triangle]  # the parts of one for a chunk of some rows


class Chunk:
    """The arrays of one chunk, (..., C, width) each; heads that share keys and values lie along an axis of their own."""

    def __init__(self, setting: Setting, carry: Carry, rows: Rows) -> None:
        xp = self.xp = setting.xp
        self.setting, self.found = setting, carry
        self.rows: Rows = tuple(None if a is None else as_dtype(xp, a, setting.dtype) for a in rows)
        query, key, value, g, beta = self.rows
        self.query, self.key, self.value, self.beta = self._features(query), self._features(key), value, beta
        parts = self.parts = setting.triangle_of(key.shape[-2])
        self.decay = decay_of(g, parts, xp)
        self.written = value  # (..., C, Dv): the values that are stored in memory, U in the formulas
        if beta is not None:
            self.overlap = self.decay.scores(self.key, self.key)  # (..., C, C); below the diagonal it counts
            self.inverse = unit_lower_inverse(beta * self.overlap, parts, xp=xp)
            self.faded_key = self.decay.from_start(self.key)
            self.news = value - xp.matmul(self.faded_key, carry.memory)
            self.written = xp.matmul(self.inverse, beta * self.news)
        self.last_key = self.decay.to_end(self.key)
        self.key_sums = None  # up to each row
        if carry.key_sum is not None:
            self.key_sums = xp.matmul(parts.whole(key.shape[-2]), self.key) + carry.key_sum

    def _features(self, x: Array) -> Array:
        return x if self.setting.feature_map is None else self.setting.feature_map(x)

    def _answer(self) -> tuple[Array, Array | None, Array, Array]:
        """Return the output before scale and division, the divisor, and two intermediate products."""
        xp = self.xp
        faded_query = self.decay.from_start(self.query)
        scores = self.decay.scores(self.query, self.key)
        sums = xp.matmul(faded_query, self.found.memory) + xp.matmul(scores, self.written)
        divisor = weights_sum(self.query, self.key_sums, xp) if self.setting.normalize else None
        return sums, divisor, faded_query, scores

    def output(self) -> Array:
        """Return the output, (..., C, Dv)."""
        sums, divisor, *_ = self._answer()
        return answer(sums, divisor, self.setting.scale, self.xp)

    def carry(self) -> Carry:
        """Return the state after the chunk."""
        xp = self.xp
        memory = self.decay.whole(self.found.memory) + xp.matmul(xp.matrix_transpose(self.last_key), self.written)
        return Carry(memory, None if self.key_sums is None else self.key_sums[..., -1:, :])

    def reverse(self, grad: Array, left: Carry) -> tuple[Carry, Rows]:
        """Return the gradients of the state before the chunk, and of its rows.

        `grad` is the gradient of the output and `left` that of the state after the chunk.
        """
        xp, decay, T = self.xp, self.decay, self.xp.matrix_transpose
        output, divisor, faded_query, scores = self._answer()
        grad, of_divisor = answer_vjp(output, divisor, grad, self.setting.scale, xp)
        of_query, log_1 = decay.from_start_vjp(self.query, xp.matmul(grad, T(self.found.memory)))
        of_row, of_column, log_2 = decay.scores_vjp(self.query, self.key, xp.matmul(grad, T(self.written)))
        of_memory, log_3 = decay.whole_vjp(self.found.memory, left.memory)
        of_last, log_4 = decay.to_end_vjp(self.key, xp.matmul(self.written, T(left.memory)))
        # Summed first over the queries that share a value, so that the term below is added once for all of them.
        of_written = summed_to(xp, xp.matmul(T(scores), grad), (*self.found.memory.shape[:-2], *self.value.shape[-2:]))
        of_written = of_written + xp.matmul(self.last_key, left.memory)
        sums = _Sums(xp, self.rows, self.found)
        sums.add(query=(of_query, of_row), key=(of_column, of_last), memory=of_memory)
        sums.add(memory=xp.matmul(T(faded_query), grad), decay=(log_1, log_2, log_3, log_4))
        if self.found.key_sum is not None:
            self._reverse_key_sum(sums, of_divisor, left.key_sum)
        if self.beta is None:
            sums.add(value=of_written)
        else:
            self._reverse_rule(sums, of_written)
        return sums.carry(), sums.rows(self._pull)

    def _reverse_key_sum(self, sums: "_Sums", of_divisor: Array | None, left: Array) -> None:
        if of_divisor is not None:
            of_sums = of_divisor * self.query
            sums.add(query=of_divisor * self.key_sums, key=sum_ahead(of_sums, self.xp))
            sums.add(key_sum=self.xp.sum(of_sums, axis=-2, keepdims=True))
        sums.add(key=left, key_sum=left)

    def _reverse_rule(self, sums: "_Sums", of_written: Array) -> None:
        """Go back through the triangular system."""
        xp, T = self.xp, self.xp.matrix_transpose
        of_right = xp.matmul(T(self.inverse), of_written)
        of_lower = -xp.matmul(of_right, T(self.written)) * self.parts.strict(self.value.shape[-2])
        of_news = self.beta * of_right
        of_row, of_column, log_1 = self.decay.scores_vjp(self.key, self.key, self.beta * of_lower)
        of_key, log_2 = self.decay.from_start_vjp(self.key, -xp.matmul(of_news, T(self.found.memory)))
        sums.add(value=of_news, key=(of_row, of_column, of_key), decay=(log_1, log_2))
        sums.add(memory=-xp.matmul(T(self.faded_key), of_news))
        sums.add(beta=xp.sum(of_lower * self.overlap, axis=-1, keepdims=True))
        sums.add(beta=xp.sum(of_right * self.news, axis=-1, keepdims=True))

    def _pull(self, x: Array, grad: Array) -> Array:
        return grad if self.setting.feature_map is None else self.setting.feature_map.pull(x, grad)


def weights_sum(query: Array, key_sums: Array, xp: Namespace) -> Array:
    """Return the products of queries and sums of keys, (..., S, 1)."""
    products = query * key_sums
    ones = xp.ones((products.shape[-1], 1), dtype=products.dtype, device=device(products))
    return xp.matmul(products, ones)  # faster than a sum, and mapped by torch, which `vecdot` is not


def answer(sums: Array, divisor: Array | None, scale: float | Array, xp: Namespace) -> Array:
    """Return ``scale * sums / divisor``; a divisor of 0 counts as 1."""
    if divisor is not None:
        sums = sums / nonzero(divisor, xp=xp)
    return _scaled(sums, scale)


def _scaled(x: Array, scale: float | Array) -> Array:
    return x if isinstance(scale, float) and scale == 1.0 else scale * x


def answer_vjp(
    sums: Array, divisor: Array | None, grad: Array, scale: float | Array, xp: Namespace
) -> tuple[Array, Array | None]:
    """Return the gradients of the sums and of the divisor."""
    grad = _scaled(grad, scale)
    if divisor is None:
        return grad, None
    divide = nonzero(divisor, xp=xp)
    grad = grad / divide
    of_divisor = -xp.sum(grad * sums, axis=-1, keepdims=True) / divide
    return grad, xp.where(divisor == 0.0, 0.0, of_divisor)


class _Sums:
    """Sums of gradients, each in the shape of its array."""

    def __init__(self, xp: Namespace, rows: Rows, found: Carry) -> None:
        self.xp, self.of = xp, dict(zip(("query", "key", "value", "decay", "beta"), rows, strict=True))
        self.of |= {"memory": found.memory, "key_sum": found.key_sum}
        self.sums: dict[str, Any] = {}

    def add(self, **terms: Any) -> None:
        """Add gradients, each summed first over the axes along which its array was broadcast."""
        for name, given in terms.items():
            for term in given if isinstance(given, tuple) else (given,):
                if term is not None:
                    shape = (*self.of[name].shape[:-1], term.shape[-1])  # features may be wider than rows
                    added = summed_to(self.xp, term, shape)
                    self.sums[name] = added if name not in self.sums else self.sums[name] + added

    def carry(self) -> Carry:
        """Return the gradients of the state before the chunk."""
        return Carry(*(None if self.of[name] is None else self._like(name) for name in ("memory", "key_sum")))

    def rows(self, pull: Any) -> Rows:
        """Return the gradients of the rows; those of features are pulled back."""
        names = ("query", "key", "value", "decay", "beta")
        mapped = {"query": pull, "key": pull}
        return tuple(None if self.of[n] is None else self._like(n, mapped.get(n)) for n in names)

    def _like(self, name: str, pull: Any = None) -> Array:
        total = self.sums.get(name)
        if total is None:
            return self.xp.zeros_like(self.of[name])
        return total if pull is None else pull(self.of[name], total)
