"""Functions of the user in a ring: what they close over becomes an operand, of which is known whether it is differentiated."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from attention_xp._backend.dtypes import computation_dtype
from attention_xp._scores.attributes import with_parts
from attention_xp._typing import Array
from attention_xp.masks import FunctionMask, Mask

__all__ = ["captured_by", "replaced", "with_functions"]

_Change = Callable[[Callable[..., Array], bool], Any]


def with_functions(given: Mapping[str, Any], change: _Change) -> dict[str, Any]:
    """Return the options of a call with its functions changed; ``change(function, of_scores)`` says how."""
    options = dict(given)
    if (score_mod := options.get("score_mod")) is not None:
        pair = isinstance(score_mod, tuple)
        first = change(score_mod[0] if pair else score_mod, True)
        options["score_mod"] = (first, *score_mod[1:]) if pair else first
    options["mask"] = _with_functions(options.get("mask"), change)
    return options


def _with_functions(mask: Any, change: _Change) -> Any:
    if isinstance(mask, FunctionMask):
        return FunctionMask(change(mask.mask_mod, False))
    return with_parts(mask, lambda part: _with_functions(part, change)) if isinstance(mask, Mask) else mask


def captured_by(given: Mapping[str, Any], query: Array) -> list[Array]:
    """Return the arrays of a trace that the functions of a call close over."""
    found: dict[int, Array] = {}
    score = jnp.zeros((1,) * max(query.ndim, 2), computation_dtype(jnp, query.dtype))
    places = [jnp.zeros(score.shape, jnp.int32)] * 4

    def look(function: Callable[..., Array], of_scores: bool) -> Any:
        program = _traced(function, [score, *places] if of_scores else places)
        found.update((id(const), const) for const in program.consts if isinstance(const, jax.core.Tracer))
        return function

    with_functions(given, look)
    return list(found.values())


def replaced(function: Callable[..., Array], captured: Mapping[int, Array]) -> Callable[..., Array]:
    """Return a function with other arrays in place of those that it has captured, which are named by their identity."""

    def call(*arguments: Any) -> Array:
        program = _traced(function, arguments)
        consts = [captured.get(id(const), const) for const in program.consts]
        (result,) = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*arguments)
        return result

    return call


def _traced(function: Callable[..., Array], arguments: Any) -> ClosedJaxpr:
    # A new function each time: JAX keeps traces by function, but what it captures may have changed.
    return jax.make_jaxpr(lambda *x: function(*x))(*arguments)  # noqa: PLW0108
