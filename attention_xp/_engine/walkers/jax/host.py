"""Programs of JAX on the CPU that hand a problem to NumPy's walker, which reads the same memory.

XLA runs the passes of a loop one after the other, and each of their operations reads and writes its arrays as a whole. NumPy's
walker shares the blocks of rows out to threads and leaves out what rules exclude, also where these are known only when the
program runs. The call is an operation of the program: on other devices, and wherever a program cannot call Python, it
is lowered to JAX's loops instead.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from attention_xp._backend.dtypes import NARROW, dtype_name
from attention_xp._backend.sharding import varying_axes
from attention_xp._backend.sizes import is_open
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.captured import Captured, exchanged
from attention_xp._engine.walkers.numpy.compiled.found import have_steps
from attention_xp._engine.walkers.numpy.pool import Pool
from attention_xp._scores.frozen import holds, holes, numbers, part, thaw
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["Walk", "is_handed_over", "things", "walked"]

_T = TypeVar("_T")


class Walk(Protocol):
    """A pass over the tiles of a problem, and what else it needs to know; comparable, as JAX keeps programs by it."""

    def is_faster_by_numpy(self, problem: Problem) -> bool:
        """Whether NumPy's walker is faster than loops of JAX on the CPU."""

    def by_loops(self, problem: Problem, *known: Any) -> Any:
        """Return the results in loops of JAX."""

    def by_numpy(self, problem: Problem, *known: Any) -> Any:
        """Return the same of a problem of NumPy."""

    def shapes(self, problem: Problem, *known: Any) -> Any:
        """Return shapes and dtypes of the results."""


def things(template: Any, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Return what template and arrays make: a problem, or a problem and what is known of it."""
    thing = thaw(template, list(arrays))
    return thing if type(thing) is tuple else (thing,)


def walked(walk: Walk, template: Any, arrays: Sequence[Array]) -> Any:
    """Return the results of a walk over what template and arrays make."""
    problem, *known = things(template, arrays)
    if holds(template, Captured) or not (_is_readable(problem, arrays) and walk.is_faster_by_numpy(problem)):
        return walk.by_loops(problem, *known)
    shapes = walk.shapes(problem, *known)
    operands = [_widened(jnp.asarray(a), problem.dtype) for a in arrays]
    found = _walk_p.bind(*operands, walk=walk, template=template)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _is_readable(problem: Problem, arrays: Sequence[Array]) -> bool:
    """Whether sizes are known, and a problem is neither packed, nor a share of a device, nor with a bias of the user."""
    is_left_to_jax = problem.packing is not None or problem.has_foreign_bias or varying_axes(arrays)
    return not (is_left_to_jax or is_open(*(n for a in arrays for n in a.shape)))


def is_handed_over(problem: Problem) -> bool:
    """Whether a program that computes the output of a problem hands it over, where it runs on the device of the query."""
    query = problem.query
    platforms = {jax.default_backend()} if isinstance(query, jax.core.Tracer) else {d.platform for d in query.devices()}
    if platforms != {"cpu"} or problem.has_foreign_code() or not _may_programs_call_python():
        return False
    return _is_readable(problem, problem.differentiated[:3]) and have_steps(problem)


def _widened(array: Array, dtype: Any) -> Array:
    """Return an array whose numbers NumPy can compute with."""
    return array.astype(dtype) if dtype_name(array.dtype) in NARROW else array


_walk_p = Primitive("attention_walk")
"""Arrays -> the results of a walk, flat."""
_walk_p.multiple_results = True


def _by_loops(*operands: Array, walk: Walk, template: Any) -> list[Array]:
    return list(jax.tree.leaves(walk.by_loops(*things(template, operands))))


def _abstract(*operands: Any, walk: Walk, template: Any) -> list[Any]:
    shapes = jax.tree.leaves(walk.shapes(*things(template, operands)))
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in shapes]


def _batch(operands: Any, axes: Any, *, walk: Walk, template: Any) -> tuple[Any, list[int]]:
    """Map JAX's loops, which compute all items at once."""

    def one(*operands: Array) -> list[Array]:
        return _by_loops(*operands, walk=walk, template=template)

    found = jax.vmap(one, in_axes=axes)(*operands)
    return found, [0] * len(found)


def _jvp(primals: Any, tangents: Any, *, walk: Walk, template: Any) -> tuple[Any, Any]:
    """Differentiate JAX's loops: the rules above the walk are gone where a checkpoint is differentiated twice."""
    varies = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def function(*some: Array) -> list[Array]:
        return _by_loops(*exchanged(primals, varies, some), walk=walk, template=template)

    found, changes = jax.jvp(function, *(list(itertools.compress(x, varies)) for x in (primals, tangents)))
    return found, changes


_lower_to_loops = mlir.lower_fun(_by_loops, multiple_results=True)


def _lower_on_cpu(ctx: Any, *operands: Any, walk: Walk, template: Any) -> Any:
    if not _may_call_python(ctx):
        return _lower_to_loops(ctx, *operands, walk=walk, template=template)
    call = partial(_on_thread, _Call(walk, template).results)
    results, _, _ = mlir.emit_python_callback(
        ctx, call, None, operands, ctx.avals_in, ctx.avals_out, has_side_effect=False
    )
    return results


class _Call:
    """A walk of a program over arrays of NumPy.

    The mask rules stay the same objects while their arrays are equal: a rule keeps what was found out about these.
    """

    _most = 2**20  # bytes of arrays of rules that are copied, and compared in each call

    def __init__(self, walk: Walk, template: Any) -> None:
        self._walk, self._template = walk, template
        self._numbers = numbers(template)
        self._rules = part(template.items[0] if template.kind is tuple else template, "rules")
        self._of_rules = holes(self._rules)
        self._known: list[Any] = []  # what the rules that are kept were made of, in memory of their own
        self._kept: tuple[Mask, ...] | None = None

    def results(self, *arrays: Any) -> list[Any]:
        """Return the results, flat."""
        import array_api_compat.numpy as xp  # noqa: PLC0415
        import numpy as np  # noqa: PLC0415  # JAX has loaded it

        # Fields that hold a number or an array hold a number for NumPy's walker where that is all there is.
        seen = [a.item() if i in self._numbers and a.ndim == 0 else a for i, a in enumerate(arrays)]
        problem, *known = things(self._template, seen)
        dtype = getattr(xp, dtype_name(problem.dtype))
        problem = dataclasses.replace(problem, xp=xp, dtype=dtype, rules=self._rules_of(problem, seen))
        with np.errstate(all="ignore"):  # JAX warns of nothing
            return list(jax.tree.leaves(self._walk.by_numpy(problem, *known)))

    def _rules_of(self, problem: Problem, seen: Sequence[Any]) -> tuple[Mask, ...]:
        """Return the rules of a problem, or those of an earlier call with equal arrays."""
        import numpy as np  # noqa: PLC0415  # JAX has loaded it

        now = [seen[i] for i in self._of_rules]
        if sum(getattr(a, "nbytes", 0) for a in now) > self._most:
            return problem.rules
        if self._kept is None or not all(map(np.array_equal, now, self._known)):
            self._known = [a.copy() if isinstance(a, np.ndarray) else a for a in now]
            own = dict(zip(self._of_rules, self._known, strict=True))
            self._kept = thaw(self._rules, [own.get(i) for i in range(len(seen))])
        return self._kept


_THREAD = Pool()
"""A thread on which NumPy computes as it always does, started when a program is made, by `_may_call_python`.

On the threads of a program, subnormal numbers count as 0, and threads that these start inherit that.
"""


def _on_thread(task: Callable[..., _T], *arguments: Any) -> _T:
    """Return what a task returns on the thread, or raise what it raises."""
    futures = _THREAD.submit(partial(task, *arguments), 1)
    if not futures:  # the interpreter shuts down
        return task(*arguments)
    try:
        return futures[0].result()
    finally:
        wait(futures)  # an interrupt must not leave the task behind: it reads memory of the program


def _may_call_python(ctx: Any) -> bool:
    """Whether a program may hold a call of Python, and take its results: not where it is exported."""
    module = ctx.module_context
    is_exported = getattr(module.lowering_parameters, "for_export", True)
    if is_exported or len(module.platforms) > 1 or not _may_programs_call_python():
        return False
    # JAX takes results of 64 bits on its threads where these types are on everywhere, and not by a context of this thread.
    are_wide_everywhere = _on_thread(lambda: bool(jax.config.jax_enable_x64))
    return are_wide_everywhere or all(x.dtype.itemsize < 8 for x in ctx.avals_out)  # bytes


def _may_programs_call_python() -> bool:
    """Whether there is one device, and JAX does not keep programs on disk, which it cannot if they call Python."""
    is_kept = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir is not None
    return not is_kept and jax.device_count("cpu") == 1


_walk_p.def_impl(_by_loops)
_walk_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_walk_p] = _jvp
batching.primitive_batchers[_walk_p] = _batch
mlir.register_lowering(_walk_p, _lower_to_loops)
mlir.register_lowering(_walk_p, _lower_on_cpu, platform="cpu")
