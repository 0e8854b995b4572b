"""What a backward pass begins with, and what it returns."""

from typing import Any, NamedTuple

from attention_xp._backend.dtypes import as_dtype
from attention_xp._engine.problem.problem import Problem
from attention_xp._typing import Array

__all__ = ["Gradients", "Known"]


class Known(NamedTuple):
    """The results of a forward pass, and their gradients."""

    output: Array  # (..., H, Sq, Dv)
    lse: Array  # (..., H, Sq)
    gradient: Array  # (..., H, Sq, Dv), of the output
    grad_lse: Array | None  # (..., H, Sq)

    def at(self, *index: Any) -> "Known":
        """Return the same for some rows, by an index of all axes but that of the numbers of a row."""
        rows, grad_lse = (*index, slice(None)), None if self.grad_lse is None else self.grad_lse[index]
        return Known(self.output[rows], self.lse[index], self.gradient[rows], grad_lse)

    def delta(self, problem: Problem) -> Array:
        """Return ``rowsum(output * gradient) - grad_lse``, (..., H, Sq)."""
        sums = problem.xp.sum(self.output * self.gradient, axis=-1)
        return sums if self.grad_lse is None else sums - as_dtype(problem.xp, self.grad_lse, problem.dtype)


class Gradients(NamedTuple):
    """Gradients of a problem's arrays, in their shapes and the dtype of the computation, or what one tile adds to them.

    In what a tile adds, the gradients of query and key lack a factor: see `query_factor` and `key_factor`.
    """

    query: Array  # (..., H, Sq, D); (..., m, D) of a tile
    key: Array  # (..., Hkv, Sk, D)
    value: Array  # (..., Hkv, Sk, Dv)
    addends: tuple[Any, ...]  # arrays, of a Bias a tuple of those of its arrays; None for what is not wanted
    captured: tuple[Array, ...] = ()  # of the arrays that `score_mod` captured, where these are known
    sinks: Array | None = None  # not from tiles: see `tile/sink.py`

    @property
    def parts(self) -> tuple[Any, ...]:
        """The gradients in the order of `Problem.differentiated`."""
        return self.query, self.key, self.value, *self.addends, *(() if self.sinks is None else (self.sinks,))
