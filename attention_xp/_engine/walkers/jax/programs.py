"""Descriptions of traced programs of JAX that can be compared, so that equal ones share a compiled program."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from attention_xp._scores.identity import Same, is_hashable

__all__ = ["described"]


def described(program: Jaxpr, author: Callable[..., Any]) -> Hashable:
    """Return a description of a program, which equals that of another program only where both compute the same.

    Functions that a program holds, such as a custom derivative, are new objects in each trace. They are compared by
    `author`, the function or class that was traced.
    """
    return _Description(author).of_program(program)


class _Description:
    """Describes a program, with its variables numbered in the order in which they appear."""

    def __init__(self, author: Callable[..., Any]) -> None:
        self._author = author
        self._numbers: dict[Var, int] = {}

    def of_program(self, program: Jaxpr) -> Hashable:
        """Describe inputs, operations and results, each with their types."""
        inputs = tuple((self._of_atom(v), v.aval) for v in (*program.constvars, *program.invars))
        return (
            len(program.constvars),
            inputs,
            tuple(map(self._of_equation, program.eqns)),
            self._of_atoms(program.outvars),
        )

    def _of_equation(self, equation: JaxprEqn) -> Hashable:
        params = tuple((name, self._of_param(param, name)) for name, param in sorted(equation.params.items()))
        results = tuple((self._of_atom(v), v.aval) for v in equation.outvars)
        return equation.primitive, params, self._of_atoms(equation.invars), results

    def _of_atoms(self, atoms: Any) -> Hashable:
        return tuple(map(self._of_atom, atoms))

    def _of_atom(self, atom: Any) -> Hashable:
        if not isinstance(atom, Literal):
            return self._numbers.setdefault(atom, len(self._numbers))
        import numpy as np  # noqa: PLC0415  # JAX has loaded it

        return atom.aval, np.asarray(atom.val).tobytes()

    def _of_param(self, param: Any, name: str = "") -> Hashable:
        if isinstance(param, Jaxpr):
            return _Description(self._author).of_program(param)
        if isinstance(param, ClosedJaxpr):
            return self._of_param(param.jaxpr), tuple(map(Same, param.consts))
        if isinstance(param, tuple | list):
            return type(param), tuple(map(self._of_param, param))
        if isinstance(param, dict):
            return dict, tuple((name, self._of_param(item)) for name, item in param.items())
        if name == "callback":  # Python that runs with the program: of the user, as a rule the same in each trace
            return (type(param), param) if is_hashable(param) else Same(param)
        if hasattr(param, "call_wrapped") or (callable(param) and not isinstance(param, type)):
            return _named(self._author)
        return (type(param), param) if is_hashable(param) else Same(param)


def _named(author: Callable[..., Any]) -> Hashable:
    """Return a weak reference to a function, or, where there is none, the function itself, compared as an object."""
    try:
        name = weakref.ref(author)
        hash(name)
    except TypeError:
        return Same(author)
    return name
