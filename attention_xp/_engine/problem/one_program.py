"""Calls that JAX is to see as one operation."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from attention_xp._backend.libraries import is_jax_namespace
from attention_xp._engine.problem.problem import Problem
from attention_xp._scores.frozen import freeze, thaw

__all__ = ["as_one_program"]

_T = TypeVar("_T")


def as_one_program(function: Callable[..., _T], problem: Problem, *more: Any) -> _T:
    """Call a function of a problem; where JAX looks for infinities, compiled, so that it looks at the results alone.

    What is excluded is minus infinity on the way to them.
    """
    if not is_jax_namespace(problem.xp):
        return function(problem, *more)
    jax: Any = sys.modules["jax"]
    if not jax.config.jax_debug_infs:
        return function(problem, *more)
    template, arrays = freeze((problem, *more))
    # With a checkpoint, nothing but the arrays is handed on to the gradients.
    program = jax.checkpoint(lambda arrays: function(*thaw(template, arrays)))
    return jax.jit(program)(arrays)  # type: ignore[no-any-return]
