"""Functions of a problem that JAX runs as one compiled program."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from attention_xp._backend import sharding
from attention_xp._backend.jitted import jitted
from attention_xp._backend.libraries import is_jax_namespace
from attention_xp._backend.modes import is_traced_by_jax
from attention_xp._backend.sharding import spread_like
from attention_xp._engine.problem.problem import Problem
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._typing import Array

__all__ = ["as_one_program", "in_automatic_axes", "kept_program"]

_T = TypeVar("_T")


def as_one_program(function: Callable[..., _T], problem: Problem, *more: Any) -> _T:
    """Call a function of a problem; where JAX would run its operations one by one, compile it and keep the program.

    Under ``jax_debug_infs`` JAX then checks the results alone, and not the scores, where excluded pairs are minus infinity.
    Functions of the user may compute something else in the next call, so that no program with one of them is kept.
    """
    if not is_jax_namespace(problem.xp):
        return function(problem, *more)
    if not is_traced_by_jax() and not problem.has_foreign_code():
        template, arrays = freeze((problem, *more), problem.dtype)
        return kept_program(function, template)(spread_like(arrays, arrays))  # type: ignore[no-any-return]
    jax: Any = sys.modules["jax"]
    if not jax.config.jax_debug_infs:
        return function(problem, *more)
    template, arrays = freeze((problem, *more))
    # With a checkpoint, nothing but the arrays is saved for the gradients.
    program = jax.checkpoint(lambda arrays: function(*thaw(template, arrays)))
    return jax.jit(program)(arrays)  # type: ignore[no-any-return]


def in_automatic_axes(function: Callable[..., _T], problem: Problem, *more: Any, specs: Any) -> _T:
    """Call a function of a problem so that XLA shares it out as on an automatic mesh; `specs` tell how the results are sharded."""
    if is_traced_by_jax() or problem.has_foreign_code():
        template, arrays = freeze((problem, *more))
        return _automatic(function, specs, template, arrays)
    template, arrays = freeze((problem, *more), problem.dtype)
    return kept_program(function, template, specs)(arrays)  # type: ignore[no-any-return]


def kept_program(function: Callable[..., Any], template: Any, specs: Any = None) -> Callable[..., Any]:
    """Return a function of arrays and operands, trees of arrays, that calls a function with what a template is made of.

    It is compiled once for each template of a tuple, which begins with a problem. `specs` are those of `in_automatic_axes`.
    """
    if specs is None:
        return jitted(_thawed, function, template)
    return jitted(_automatic, function, specs, template)


def _automatic(function: Callable[..., _T], specs: Any, template: Any, arrays: list[Array], *operands: Any) -> _T:
    query = arrays[0]  # the first field of a problem that is an array
    return sharding.in_automatic_axes(partial(_thawed, function, template), (arrays, *operands), query, specs)  # type: ignore[no-any-return]


def _thawed(function: Callable[..., _T], template: Any, arrays: list[Array], *operands: Any) -> _T:
    return function(*thaw(template, arrays), *operands)
