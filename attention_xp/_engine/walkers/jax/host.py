"""Programs of JAX on the CPU that hand a problem to NumPy's walker, which reads the same memory.

XLA runs the passes of a loop one after the other, and each of their operations reads and writes its arrays as a whole. NumPy's
walker shares the blocks of rows out to threads and leaves out what rules exclude, also where these are known only when the
program runs. The call is an operation of the program: on other devices, and wherever a program cannot call Python, it
is lowered to JAX's loops instead.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.sharding import varying_axes
from attention_xp._backend.sizes import is_open
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.captured import Captured
from attention_xp._engine.walkers.numpy.compiled.found import have_steps
from attention_xp._scores.frozen import holds, holes, numbers, part, thaw
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["Walk", "is_handed_over", "things", "walked"]


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


def walked(walk: Walk, template: Any, arrays: Sequence[Array]) -> Any:
    """Return the results of a walk over what template and arrays make: a problem, or a problem and what is known of it."""
    problem, *known = things(thaw(template, list(arrays)))
    if not (_is_readable(problem, template, arrays) and walk.is_faster_by_numpy(problem)):
        return walk.by_loops(problem, *known)
    shapes = walk.shapes(problem, *known)
    operands = [_widened(jnp.asarray(a), problem.dtype) for a in arrays]
    found = _walk_p.bind(*operands, walk=walk, template=template)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _is_readable(problem: Problem, template: Any, arrays: Sequence[Array]) -> bool:
    """Whether a problem is one of arrays alone, whose sizes are known, and no share of a device."""
    is_left_to_jax = holds(template, Captured) or problem.packing is not None or problem.has_foreign_bias
    return not (is_left_to_jax or varying_axes(arrays) or is_open(*(n for a in arrays for n in a.shape)))


def is_handed_over(problem: Problem) -> bool:
    """Whether a program that computes the output of a problem hands it over, where it runs on the device of the query."""
    query = problem.query
    platforms = {jax.default_backend()} if isinstance(query, jax.core.Tracer) else {d.platform for d in query.devices()}
    if platforms != {"cpu"} or jax.device_count("cpu") > 1 or problem.has_foreign_code() or _is_kept_on_disk():
        return False
    return _is_readable(problem, None, problem.differentiated[:3]) and have_steps(problem)


def things(thing: Any) -> tuple[Any, ...]:
    """Return a problem, or a problem and what is known of it, as a tuple."""
    return thing if type(thing) is tuple else (thing,)


def _widened(array: Array, dtype: Any) -> Array:
    """Return an array whose numbers NumPy can compute with: it has no bfloat16, and converts float16 one by one."""
    return array.astype(dtype) if dtype_name(array.dtype) in ("bfloat16", "float16") else array


_walk_p = Primitive("attention_walk")
"""Arrays -> the results of a walk, flat."""
_walk_p.multiple_results = True


def _by_loops(*operands: Array, walk: Walk, template: Any) -> list[Array]:
    return list(jax.tree.leaves(walk.by_loops(*things(thaw(template, list(operands))))))


def _abstract(*operands: Any, walk: Walk, template: Any) -> list[Any]:
    shapes = jax.tree.leaves(walk.shapes(*things(thaw(template, list(operands)))))
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in shapes]


def _batch(operands: Any, axes: Any, *, walk: Walk, template: Any) -> tuple[Any, list[int]]:
    """Map JAX's loops, which compute all items at once."""

    def one(*operands: Array) -> list[Array]:
        return _by_loops(*operands, walk=walk, template=template)

    found = jax.vmap(one, in_axes=axes)(*operands)
    return found, [0] * len(found)


def _jvp(primals: Any, tangents: Any, *, walk: Walk, template: Any) -> tuple[Any, Any]:
    """Differentiate JAX's loops: the rules above the walk are gone where a checkpoint is differentiated twice."""
    varied = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def function(*some: Array) -> list[Array]:
        operands = list(primals)
        for i, operand in zip(varied, some, strict=True):
            operands[i] = operand
        return _by_loops(*operands, walk=walk, template=template)

    found, changes = jax.jvp(function, [primals[i] for i in varied], [tangents[i] for i in varied])
    return found, changes


_lower_to_loops = mlir.lower_fun(_by_loops, multiple_results=True)


def _lower_on_cpu(ctx: Any, *operands: Any, walk: Walk, template: Any) -> Any:
    _THREAD.start()
    if not (_may_call_python(ctx.module_context) and _may_return(ctx.avals_out)):
        return _lower_to_loops(ctx, *operands, walk=walk, template=template)
    rules = _Rules(template)

    def call(*arrays: Any) -> list[Any]:
        return _THREAD.result_of(partial(_computed, walk, template, arrays, rules))

    results, _, _ = mlir.emit_python_callback(
        ctx, call, None, operands, ctx.avals_in, ctx.avals_out, has_side_effect=False
    )
    return results


def _computed(walk: Walk, template: Any, arrays: Sequence[Any], rules: "_Rules") -> list[Any]:
    import array_api_compat.numpy as xp  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415  # JAX has loaded it

    seen = _seen(template, arrays)
    problem, *known = things(thaw(template, seen))
    dtype = getattr(xp, dtype_name(problem.dtype))
    problem = dataclasses.replace(problem, xp=xp, dtype=dtype, rules=rules.of(problem, seen))
    with np.errstate(all="ignore"):  # JAX warns of nothing
        return list(jax.tree.leaves(walk.by_numpy(problem, *known)))


class _Rules:
    """The mask rules of a program, which stay the same objects while their arrays do: a rule keeps what was found out about these."""

    _most = 2**20  # bytes of arrays that are copied, and compared in each call

    def __init__(self, template: Any) -> None:
        of_problem = template.items[0] if template.kind is tuple else template
        self._template = part(of_problem, "rules")
        self._places = holes(self._template)
        self._known: list[Any] = []
        self._rules: tuple[Mask, ...] | None = None

    def of(self, problem: Problem, seen: Sequence[Any]) -> tuple[Mask, ...]:
        """Return the rules of a problem, or those of an earlier call with equal arrays, which lie in memory of their own."""
        import numpy as np  # noqa: PLC0415  # JAX has loaded it

        now = [seen[i] for i in self._places]
        if sum(getattr(a, "nbytes", 0) for a in now) > self._most:
            return problem.rules
        if self._rules is None or not all(map(np.array_equal, now, self._known)):
            self._known = [a.copy() if isinstance(a, np.ndarray) else a for a in now]
            own = dict(zip(self._places, self._known, strict=True))
            self._rules = thaw(self._template, [own.get(i) for i in range(len(seen))])
        return self._rules


class _Thread:
    """A thread on which NumPy computes as it always does.

    On the threads of a program, subnormal numbers count as 0, and threads that these start inherit that. Therefore the thread
    starts when a program is made.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._executor = None  # a forked child has no threads

    def start(self) -> None:
        """Start it, if it does not run."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="attention_xp_host")
            self._executor.submit(int).result()

    def result_of(self, task: Callable[[], list[Any]]) -> list[Any]:
        """Return what a task returns on the thread, or raise what it raises."""
        try:
            self.start()
            future = self._executor.submit(task)  # type: ignore[union-attr]
        except RuntimeError:  # the interpreter shuts down
            return task()
        try:
            return future.result()
        finally:
            wait([future])  # an interrupt must not leave the task behind: it reads memory of the program


_THREAD = _Thread()


def _may_call_python(module: Any) -> bool:
    """Whether a program may hold a call of Python: not where it is exported or kept on disk, nor on several devices."""
    is_exported = getattr(module.lowering_parameters, "for_export", True)
    return not is_exported and not _is_kept_on_disk() and len(module.platforms) == 1 and jax.device_count("cpu") == 1


def _may_return(results: Sequence[Any]) -> bool:
    """Whether JAX takes results of these dtypes on every thread: not where a thread alone has switched 64-bit types on."""
    is_everywhere = _THREAD.result_of(lambda: [jax.config.jax_enable_x64])[0]
    return bool(is_everywhere) or all(x.dtype.itemsize < 8 for x in results)  # bytes


def _is_kept_on_disk() -> bool:
    """Whether JAX keeps compiled programs for other processes, which it cannot if they call Python."""
    return bool(jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir is not None)


def _seen(template: Any, arrays: Sequence[Any]) -> list[Any]:
    """Return arrays as NumPy's walker takes them: as plain numbers where a class may have those."""
    plain = numbers(template)
    return [a.item() if i in plain and a.ndim == 0 else a for i, a in enumerate(arrays)]


_walk_p.def_impl(_by_loops)
_walk_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_walk_p] = _jvp
batching.primitive_batchers[_walk_p] = _batch
mlir.register_lowering(_walk_p, _lower_to_loops)
mlir.register_lowering(_walk_p, _lower_on_cpu, platform="cpu")
