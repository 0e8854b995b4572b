"""The two passes over the tiles of a problem, by loops of JAX and by NumPy's walker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.walkers.jax.backward import BackwardWalk, for_each_array
from attention_xp._engine.walkers.jax.forward import ForwardWalk
from attention_xp._engine.walkers.jax.loops import gradient_dtype
from attention_xp._engine.walkers.numpy.compiled.found import have_steps
from attention_xp._typing import Array

__all__ = ["Backward", "Forward"]


@dataclass(frozen=True)
class Forward:
    """Output (..., H, Sq, Dv) and, if it is wanted, log-sum-exp (..., H, Sq)."""

    lse: bool

    def is_faster_by_numpy(self, problem: Problem) -> bool:
        """Whether NumPy has compiled loops for it."""
        return have_steps(problem)

    def by_loops(self, problem: Problem) -> tuple[Array, ...]:
        """Compute them in loops of JAX."""
        return ForwardWalk(problem, lse=self.lse).run()

    def by_numpy(self, problem: Problem) -> tuple[Any, ...]:
        """Compute them on arrays of NumPy."""
        from attention_xp._engine.walkers.numpy.forward import forward  # noqa: PLC0415  # when a program runs

        return forward(problem, lse=self.lse)[: 1 + self.lse]

    def shapes(self, problem: Problem) -> tuple[Any, ...]:
        """Return their shapes and dtypes."""
        rows = *problem.lead, problem.query.shape[-2]
        shapes = (*rows, problem.value.shape[-1]), rows
        return tuple(jax.ShapeDtypeStruct(shape, problem.dtype) for shape in shapes[: 1 + self.lse])


@dataclass(frozen=True)
class Backward:
    """The gradients of query, key and value, and of the addends that are wanted."""

    wanted: tuple[bool, ...]

    def is_faster_by_numpy(self, problem: Problem) -> bool:
        """Whether NumPy has compiled loops for it, which leave out the gradients of what is added to the scores."""
        return not any(self.wanted) and have_steps(problem)

    def by_loops(self, problem: Problem, known: Sequence[Any]) -> Gradients:
        """Compute them in loops of JAX."""
        return BackwardWalk(problem, Known(*known), self.wanted).gradients()

    def by_numpy(self, problem: Problem, known: Sequence[Any]) -> Gradients:
        """Compute them on arrays of NumPy."""
        from attention_xp._engine.walkers.numpy.backward import backward  # noqa: PLC0415  # when a program runs

        return backward(problem, Known(*known), self.wanted)

    def shapes(self, problem: Problem, _known: Sequence[Any]) -> Gradients:
        """Return their shapes and dtypes."""

        def like(array: Array) -> Any:
            return jax.ShapeDtypeStruct(array.shape, gradient_dtype(problem, array))

        addends = tuple(
            for_each_array(like, a) if is_wanted else None
            for a, is_wanted in zip(problem.addends, self.wanted, strict=True)
        )
        return Gradients(like(problem.query), like(problem.key), like(problem.value), addends)
