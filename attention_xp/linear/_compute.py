"""Forward and backward over the chunks of a call, on every backend."""

from collections.abc import Callable
from functools import partial
from typing import Any

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device, is_jax_namespace
from attention_xp._backend.modes import is_compiling, refuse_shards
from attention_xp._backend.shapes import summed_to
from attention_xp._backend.sharding import is_on_explicit_mesh, knows_automatic_axes, spec_of
from attention_xp._engine.problem.one_program import kept_program
from attention_xp._scores.frozen import freeze
from attention_xp._typing import Array
from attention_xp.linear._chunk import Carry, Chunk, Setting, answer, answer_vjp, weights_sum
from attention_xp.linear._problem import LinearProblem
from attention_xp.linear._scan import Rows, Stepped, scan
from attention_xp.linear._triangles import triangle

__all__ = ["backward", "forward", "forward_keeping", "run"]


def run(function: Callable[..., Any], problem: LinearProblem, *operands: Any) -> Any:
    """Call ``function(problem, *operands)``; on JAX as one program that is compiled once for each kind of call."""
    if not is_jax_namespace(problem.xp):
        refuse_shards(problem.xp)
        problem, context = sheltered(problem)
        with context:
            return function(problem, *operands)
    template, arrays = freeze((problem,), problem.dtype)
    is_shared_out = knows_automatic_axes() and is_on_explicit_mesh(problem.query)
    specs = _specs(function, problem) if is_shared_out else None
    return kept_program(function, template, specs)(arrays, *operands)


def _specs(function: Callable[..., Any], problem: LinearProblem) -> Any:
    """Return how the results of a function of a problem on an explicit mesh are sharded: as its rows and heads are."""
    query, state = spec_of(problem.query, -1), spec_of(problem.key, -2)
    rows = tuple(query if a is None else spec_of(a, -1) for a in _rows(problem))
    return {forward: (query, state), forward_keeping: (query, state, state), backward: (state, rows)}[function]


def _setting(problem: LinearProblem) -> Setting:
    xp, S, size = problem.xp, problem.key.shape[-2], problem.size
    ndim, where = problem.query.ndim, device(problem.query)
    make = partial(triangle, ndim=ndim, split=problem.beta is not None, xp=xp, dtype=problem.dtype, device=where)
    setting = partial(Setting, xp, problem.dtype, problem.feature_map, problem.scale, problem.normalize)
    if is_compiling(xp):  # a symbolic length cannot be a key: one triangle serves shorter chunks too
        one = make(1 if S == 1 else size)
        return setting(lambda _: one)
    lengths = {min(size, S), S % size} - {0} if problem.causal else set()
    return setting({C: make(C) for C in sorted(lengths)}.__getitem__)


def _start(problem: LinearProblem) -> Carry:
    """Return the state before the first chunk, in the shape of all later ones."""
    xp, dtype, where = problem.xp, problem.dtype, device(problem.query)
    D, Dv = problem.features, problem.value.shape[-1]

    def filled(given: Any, shape: Any) -> Array:
        if given is None:
            return xp.zeros(shape, dtype=dtype, device=where)
        return xp.broadcast_to(as_dtype(xp, given, dtype), shape)

    tracked = problem.normalize or problem.key_sum is not None
    memory = filled(problem.memory, (*problem.lead, D, Dv))
    return Carry(memory, filled(problem.key_sum, (*problem.lead, 1, D)) if tracked else None)


def _rows(problem: LinearProblem) -> Rows:
    return problem.query, problem.key, problem.value, problem.decay, problem.beta


def forward(problem: LinearProblem) -> tuple[Array, Carry]:
    """Return the output and the state after the last chunk."""
    return _forward(problem, keep=False)[:2]


def forward_keeping(problem: LinearProblem) -> tuple[Array, Carry, Rows]:
    """Return the results of `forward`, and the state before each chunk, for the gradients."""
    return _forward(problem, keep=True)


def _forward(problem: LinearProblem, *, keep: bool) -> tuple[Array, Carry, Rows]:
    if not problem.causal:
        return _forward_at_once(problem)
    xp, setting, start = problem.xp, _setting(problem), _start(problem)
    out_dtype = problem.value.dtype

    def step(carry: Carry, rows: Rows, _: Rows) -> Stepped:
        chunk = Chunk(setting, carry, rows)
        output = as_dtype(xp, chunk.output(), out_dtype)
        return chunk.carry(), (output, *(_flat(carry, problem) if keep else ()))

    if problem.key.shape[-2] == 0:
        leads = zip(problem.query.shape[:-2], problem.lead, strict=True)
        shape = (*(n if m == 1 else m for n, m in leads), 0, problem.value.shape[-1])
        return xp.zeros(shape, dtype=out_dtype, device=device(problem.query)), start, ()
    carry, (output, *kept) = scan(step, start, _rows(problem), size=problem.size, xp=xp)
    return output, carry, tuple(kept)


def _flat(carry: Carry, problem: LinearProblem) -> Rows:
    """Return the arrays of a state, each flattened to one row."""
    lead = problem.lead
    return tuple(None if a is None else problem.xp.reshape(a, (*lead, 1, a.shape[-2] * a.shape[-1])) for a in carry)


def backward(problem: LinearProblem, kept: Rows, grad: Array, left: Carry) -> tuple[Carry, Rows]:
    """Return the gradients of the state before the first chunk, and of query, key, value, decay and beta."""
    if not problem.causal:
        return _backward_at_once(problem, grad, left)
    xp, setting = problem.xp, _setting(problem)
    D, Dv = problem.features, problem.value.shape[-1]
    rows = _rows(problem)
    dtypes = tuple(None if a is None else a.dtype for a in rows)

    def step(left: Carry, rows: Rows, kept: Rows) -> Stepped:
        memory, key_sum = kept
        found = Carry(xp.reshape(memory, (*problem.lead, D, Dv)), key_sum)
        grad = rows[-1]
        left, grads = Chunk(setting, found, rows[:-1]).reverse(as_dtype(xp, grad, problem.dtype), left)
        cast = (g if g is None else as_dtype(xp, g, dtype) for g, dtype in zip(grads, dtypes, strict=True))
        return left, tuple(cast)

    if problem.key.shape[-2] == 0:
        return left, tuple(None if a is None else xp.zeros_like(a) for a in rows)
    return scan(step, left, (*rows, grad), kept, size=problem.size, xp=xp, reverse=True)


def _at_once(problem: LinearProblem) -> tuple[Array, Array, Array, Carry]:
    """Return mapped queries and keys, values, and the memory of all keys."""
    xp = problem.xp
    rows = [as_dtype(xp, a, problem.dtype) for a in (problem.query, problem.key, problem.value)]
    query, key = (x if problem.feature_map is None else problem.feature_map(x) for x in rows[:2])
    key_sum = xp.sum(key, axis=-2, keepdims=True) if problem.normalize else None
    return query, key, rows[2], Carry(xp.matmul(xp.matrix_transpose(key), rows[2]), key_sum)


def _sums_at_once(problem: LinearProblem, query: Array, carry: Carry) -> tuple[Array, Array | None]:
    divisor = weights_sum(query, carry.key_sum, problem.xp) if problem.normalize else None
    return problem.xp.matmul(query, carry.memory), divisor


def _forward_at_once(problem: LinearProblem) -> tuple[Array, Carry, Rows]:
    """Attend without causal order: every query uses the memory of all keys."""
    query, _, _, carry = _at_once(problem)
    output = answer(*_sums_at_once(problem, query, carry), problem.scale, problem.xp)
    return as_dtype(problem.xp, output, problem.value.dtype), carry, ()


def _backward_at_once(problem: LinearProblem, grad: Array, left: Carry) -> tuple[Carry, Rows]:
    xp, T = problem.xp, problem.xp.matrix_transpose
    query, key, value, carry = _at_once(problem)
    sums, divisor = _sums_at_once(problem, query, carry)
    grad = as_dtype(xp, grad, problem.dtype)
    grad, of_divisor = answer_vjp(sums, divisor, grad, problem.scale, xp)
    of_memory = summed_to(xp, xp.matmul(T(query), grad), tuple(carry.memory.shape)) + left.memory
    of_query = xp.matmul(grad, T(carry.memory))
    of_key = summed_to(xp, xp.matmul(value, T(of_memory)), tuple(key.shape))
    if of_divisor is not None:
        of_query = of_query + of_divisor * carry.key_sum
        of_sum = summed_to(xp, xp.sum(of_divisor * query, axis=-2, keepdims=True), tuple(carry.key_sum.shape))
        of_key = of_key + of_sum + left.key_sum
    mapped = ((problem.query, summed_to(xp, of_query, tuple(query.shape))), (problem.key, of_key))
    pulled = (_pulled(problem, x, of_features) for x, of_features in mapped)
    of_value = summed_to(xp, xp.matmul(key, of_memory), tuple(value.shape))
    return left, (*pulled, of_value, None, None)


def _pulled(problem: LinearProblem, x: Array, grad: Array) -> Array:
    if problem.feature_map is not None:
        grad = problem.feature_map.pull(as_dtype(problem.xp, x, problem.dtype), grad)
    return as_dtype(problem.xp, grad, x.dtype)
