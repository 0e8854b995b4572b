"""The contenders of attention_xp: the same call on the arrays of each library."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from attention_xp import attention_vjp, flash_attention, scaled_dot_product_attention
from attention_xp._engine.walkers.numpy.compiled import found
from attention_xp.cache import PagedCache, StaticCache, append, append_and_attend, paged_attention
from attention_xp.linear import linear_attention
from benchmarks.case import Case
from benchmarks.contenders import Call, contender

__all__ = ["as_tensors", "by_autograd", "compiled_bytes", "differentiated", "recompile", "rule_inputs", "without_loops"]


@contender("ours, NumPy")
def _numpy(case: Case) -> Call:
    return partial(flash_attention, *case.inputs(), **case.options())


for kernel in ("dense", "tiled"):

    @contender(f"ours, NumPy, {kernel}")
    def _numpy_by(case: Case, kernel: str = kernel) -> Call:
        return partial(flash_attention, *case.inputs(), **case.options(), impl=kernel)


def without_loops(prepare: Callable[[Case], Call]) -> Callable[[Case], Call]:
    """Prepare a call in a process in which no call is large enough for loops that numba compiles."""

    def prepared(case: Case) -> Call:
        found.FEWEST_PAIRS = sys.maxsize
        return prepare(case)

    return prepared


contender("ours, NumPy, without numba")(without_loops(_numpy))
contender("ours, NumPy, with numba", "numba")(lambda case, _: _numpy(case))


@contender("ours, NumPy, with weights")
def _weights(case: Case) -> Call:
    return partial(scaled_dot_product_attention, *case.inputs(), **case.options(), impl="dense")


@contender("ours, NumPy, linear")
def _linear(case: Case) -> Call:
    return partial(linear_attention, *case.inputs(), is_causal=case.causal)


for rule in ("gated", "delta", "gated_delta"):

    @contender(f"ours, NumPy, {rule}")
    def _numpy_rule(case: Case, rule: str = rule) -> Call:
        arrays, options = rule_inputs(case, rule)
        return partial(linear_attention, *arrays, feature_map=None, update_rule=rule, **options)

    @contender(f"ours, torch, {rule}", "torch")
    def _torch_rule(case: Case, torch: Any, rule: str = rule) -> Call:
        arrays, options = rule_inputs(case, rule)
        tensors = {name: torch.from_numpy(x) for name, x in options.items()}
        return partial(
            linear_attention, *as_tensors(case, torch, arrays), feature_map=None, update_rule=rule, **tensors
        )


def rule_inputs(case: Case, rule: str) -> tuple[list[Any], dict[str, Any]]:
    """Return query, keys of length 1 and value, and what the rule takes: a decay for each head, and beta."""
    query, key, value = case.inputs()
    rng, shape = np.random.default_rng(1), (*key.shape[:-1], 1)
    options = {}
    if rule.startswith("gated"):
        options["decay"] = -np.exp(rng.standard_normal(shape, dtype=np.float32) - 1)
    if rule.endswith("delta"):
        options["beta"] = rng.random(shape, dtype=np.float32)
    return [query, key / np.linalg.norm(key, axis=-1, keepdims=True), value], options


STEPS = (
    512  # of decoding, after which a sequence starts again: making its cache anew counts, and is less than a hundredth
)


def _decoding(case: Case, empty: Callable[[], Any]) -> Call:
    """Return a call that takes one step of decoding, from ``kv_length - 1`` positions on."""
    query, key, value = case.inputs()
    now = query, key[:, :, -1:], value[:, :, -1:]

    def sequence() -> Iterator[None]:
        while True:
            cache = append(empty(), key[:, :, :-1], value[:, :, :-1])
            for _ in range(STEPS):
                _, cache = append_and_attend(cache, *now, is_causal=True)
                yield

    return partial(next, sequence())


@contender("ours, NumPy, static cache")
def _static(case: Case) -> Call:
    B, heads, S, D = case.kv_shape
    return _decoding(case, lambda: StaticCache.empty(B, heads, S + STEPS, D, dtype="float32"))


@contender("ours, NumPy, paged cache")
def _paged(case: Case) -> Call:
    (B, heads, S, D), size = case.kv_shape, case.block_size
    most = -(-(S + STEPS) // size)
    how = {"page_size": size, "pages_per_item": most, "dtype": "float32"}
    return _decoding(case, lambda: PagedCache.empty(B, heads, B * most, D, **how))


@contender("ours, NumPy, scattered pages")
def _scattered(case: Case) -> Call:
    """All keys of a case, in pages of which those of a head follow each other, and those of an item in random order."""
    query, *arrays = case.inputs()
    B, heads, S, D = case.kv_shape
    pages = B * S // case.block_size
    table = np.random.default_rng(1).permutation(pages).reshape(B, -1)
    pools = [a.swapaxes(0, 1).reshape(heads, pages, case.block_size, D).swapaxes(0, 1) for a in arrays]
    return partial(paged_attention, query, *pools, table, S)


contender("ours, NumPy, scattered pages, without numba")(without_loops(_scattered))


@contender("ours, NumPy, slices")
def _slices(case: Case) -> Call:
    """What the steps of decoding attend, as slices of arrays that are there already."""
    query, key, value = case.inputs()
    key, value = (np.concatenate([a, a[:, :, :1].repeat(STEPS, axis=2)], axis=2) for a in (key, value))
    lengths = cycle(range(case.kv_shape[2], case.kv_shape[2] + STEPS))

    def attend() -> Any:
        n = next(lengths)
        return flash_attention(query, key[:, :, :n], value[:, :, :n])

    return attend


@contender("ours, NumPy, gradients")
def _gradients(case: Case) -> Call:
    query, key, value, gradient = case.inputs_and_gradient()

    def differentiate() -> Any:
        output, vjp = attention_vjp(query, key, value, **case.options())
        return output, vjp(gradient)

    return differentiate


contender("ours, NumPy, gradients, without numba")(without_loops(_gradients))
contender("ours, NumPy, gradients, with numba", "numba")(lambda case, _: _gradients(case))


@contender("ours, torch", "torch")
def _torch(case: Case, torch: Any) -> Call:
    return _on_tensors(case, torch)


for kernel in ("dense", "tiled", "fused"):

    @contender(f"ours, torch, {kernel}", "torch")
    def _torch_by(case: Case, torch: Any, kernel: str = kernel) -> Call:
        return _on_tensors(case, torch, impl=kernel)


@contender("ours, torch, gradients", "torch")
def _torch_gradients(case: Case, torch: Any) -> Call:
    return by_autograd(case, torch, partial(flash_attention, **case.options(torch.from_numpy)))


def by_autograd(case: Case, torch: Any, attend: Any) -> Call:
    """Return a call that goes forward, and backward by torch."""
    *arrays, gradient = as_tensors(case, torch, case.inputs_and_gradient())
    arrays = [x.requires_grad_() for x in arrays]

    def differentiate() -> Any:
        output = attend(*arrays)
        return output, torch.autograd.grad(output, arrays, gradient)

    return differentiate


def _on_tensors(case: Case, torch: Any, **how: Any) -> Call:
    options = case.options(torch.from_numpy) | how
    return partial(flash_attention, *as_tensors(case, torch, case.inputs()), **options)


def as_tensors(case: Case, torch: Any, arrays: list[Any]) -> list[Any]:
    """Return arrays as tensors of the dtype of the case."""
    return [torch.from_numpy(x).to(getattr(torch, case.dtype)) for x in arrays]


def _jitted(case: Case, jax: Any, **how: Any) -> tuple[Any, list[Any]]:
    options = case.options(jax.numpy.asarray) | how
    return jax.jit(partial(flash_attention, **options)), [jax.numpy.asarray(x) for x in case.inputs()]


for kernel in ("dense", "tiled"):

    @contender(f"ours, JAX, {kernel}", "jax")
    def _jax_by(case: Case, jax: Any, kernel: str = kernel) -> Call:
        function, arrays = _jitted(case, jax, impl=kernel)
        return lambda: function(*arrays).block_until_ready()


def compiled_bytes(function: Any, arrays: list[Any]) -> int:
    """Return the bytes of output and temporaries of a jitted function, as its compiler counts them."""
    analysis = function.lower(*arrays).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def recompile(jax: Any, function: Any, arrays: list[Any]) -> Call:
    """Return a call that traces and compiles the jitted function as if for the first time."""

    def compile_again() -> None:
        jax.clear_caches()
        function.lower(*arrays).compile()

    return compile_again


@contender("ours, JAX", "jax", memory=lambda case, jax: compiled_bytes(*_jitted(case, jax)))
def _jax(case: Case, jax: Any) -> Call:
    function, arrays = _jitted(case, jax)
    return lambda: function(*arrays).block_until_ready()


def differentiated(jax: Any, attend: Any, arrays: list[Any], gradient: Any) -> Call:
    """Return a call of a jitted function that gives the output and the gradients of the arrays."""

    @jax.jit
    def differentiate(*arrays: Any) -> Any:
        output, vjp = jax.vjp(attend, *arrays)
        return output, vjp(gradient)

    return lambda: jax.block_until_ready(differentiate(*arrays))


@contender("ours, JAX, gradients", "jax")
def _jax_gradients(case: Case, jax: Any) -> Call:
    attend = partial(flash_attention, **case.options(jax.numpy.asarray))
    *arrays, gradient = map(jax.numpy.asarray, case.inputs_and_gradient())
    return differentiated(jax, attend, arrays, gradient)


@contender("ours, JAX, compiling", "jax")
def _jax_compiling(case: Case, jax: Any) -> Call:
    return recompile(jax, *_jitted(case, jax))


@contender("ours, CuPy", "cupy")
def _cupy(case: Case, cupy: Any) -> Call:
    arrays = [cupy.asarray(x) for x in case.inputs()]

    def attend() -> None:
        flash_attention(*arrays, **case.options())
        cupy.cuda.get_current_stream().synchronize()

    return attend
