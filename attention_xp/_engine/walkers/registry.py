"""The walkers, by library: they visit the tiles of a problem, forward, backward and for statistics."""

from typing import Protocol

from attention_xp._backend.libraries import library_name
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.tile.statistics import Statistics
from attention_xp._engine.walkers.portable import walker as portable
from attention_xp._typing import Array, Namespace

__all__ = ["Walker", "walker_of"]


class Walker(Protocol):
    """Visits the tiles of a problem without empty axes, whose scale is a plain float."""

    def forward(self, problem: Problem, *, lse: bool) -> tuple[Array, Array | None]:
        """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq), which may be ``None`` where it is not wanted."""

    def backward(self, problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Gradients:
        """Return the gradients without those of the sinks, and with those of the addends that are wanted."""

    def statistics(self, problem: Problem) -> Statistics:
        """Return the statistics of all rows."""


def walker_of(xp: Namespace) -> Walker:
    """Return the walker of a library, which is loaded with that library, when it is first asked for."""
    library = library_name(xp)
    if library == "numpy":
        from attention_xp._engine.walkers.numpy import walker as numpy_walker  # noqa: PLC0415

        return numpy_walker
    if library == "torch":
        from attention_xp._engine.walkers.torch import walker as torch_walker  # noqa: PLC0415

        return torch_walker
    if library == "jax":
        from attention_xp._engine.walkers.jax import walker as jax_walker  # noqa: PLC0415

        return jax_walker
    return portable
