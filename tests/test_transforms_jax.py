"""Every numerical function inside the transformations of JAX."""

import importlib
import inspect
import os
import subprocess
import sys
from functools import partial
from types import CodeType

import numpy as np
import pytest

import attention_xp as ax
from tests._backends import to_numpy
from tests._inputs import normal
from tests._public_calls import CALLS, QKV, is_rare
from tests._quick import some_rare
from tests._transforms import assert_same, mapped, results

pytestmark = pytest.mark.backends("jax")
calls = pytest.mark.parametrize(("function", "arguments"), some_rare(CALLS, is_rare))
IMPLS = pytest.mark.parametrize("impl", ["auto", "dense", "tiled"])
WITHOUT_ARRAYS = {
    "alibi_slopes", "bigbird_mask", "create_causal_mask", "init_multi_head_params", "learned_positional_encoding",
    "longformer_mask", "positional_encoding", "sparse_transformer_mask",
}  # fmt: skip
ELSEWHERE = {"ArrayMask", "Explanation"}  # the former with all masks, the latter is a result
WITHOUT_NUMBERS = {"explain", "progress", "attention_score_visualization", "rotary_cache"}  # the last is made ahead


def outcomes(jax, function, floating):
    """A function of a call's arrays, and of several versions of them, that returns what each transformation makes of it."""
    jnp = jax.numpy

    def loss(moving, fixed):
        rest = {False: iter(fixed), True: iter(moving)}
        outputs = jax.tree.leaves(function(*(next(rest[moves]) for moves in floating)))
        return sum((jnp.sin(1.0 + jnp.arange(y.size, dtype=y.dtype)) * y.ravel()).sum() for y in outputs)

    def split(arrays):
        return tuple([a for a, m in zip(arrays, floating, strict=True) if m is moves] for moves in (True, False))

    def everything(arrays, stacked):
        moving, fixed = split(arrays)
        directions = [jnp.cos(1.0 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in moving]
        slopes = jax.grad(jax.checkpoint(loss))(moving, fixed)
        return {
            "jit": function(*arrays),
            "vmap": jax.vmap(function)(*stacked),
            "reverse": sum((slope * d).sum() for slope, d in zip(slopes, directions, strict=True)),
            "forward": jax.jvp(lambda xs: loss(xs, fixed), (moving,), (directions,))[1],
        }

    return everything


@calls
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")  # too few results to reuse all
def test_every_call(library, function, arguments):
    """One program, because compiling is what takes the time: exported, and called with buffers that it may reuse."""
    jax = importlib.import_module("jax")
    everything = jax.jit(outcomes(jax, function, [x.dtype.kind == "f" for x in arguments]))
    versions = list(zip(*map(to_numpy, mapped(library, arguments)), strict=True))

    def given(i):
        return [library.array(x) for x in versions[i]], mapped(library, arguments)

    exported = importlib.import_module("jax.export").export(everything)(*given(0))
    expected = function(*given(0)[0])
    program = jax.jit(exported.call, donate_argnums=(0, 1))
    found = [program(*given(i)) for i in range(len(versions))]
    one_by_one = tuple(np.stack(parts) for parts in zip(*(results(x["jit"]) for x in found), strict=True))
    assert_same(found[0]["jit"], expected)
    for each in found:
        assert_same(each["vmap"], one_by_one)
        np.testing.assert_allclose(each["reverse"], each["forward"], rtol=1e-3, atol=1e-3)


def test_every_public_function_is_called():
    called = set()
    for call, _ in CALLS.values():
        function = inspect.unwrap(call.func if isinstance(call, partial) else call)
        called |= {function.__name__} | names_in(function.__code__)
    public = {
        getattr(module, name)
        for module in (ax, ax.biases, ax.linear, ax.masks)
        for name in module.__all__
        if callable(getattr(module, name))
    }
    results = {x for x in public if isinstance(x, type) and issubclass(x, tuple)} | {ax.linear.PerformerFeatures}
    assert {
        x.__name__ for x in public - results - {ax.biases.Bias, ax.masks.Mask}
    } - called == WITHOUT_ARRAYS | WITHOUT_NUMBERS | ELSEWHERE


def names_in(code):
    """All names that a function, or one inside of it, looks up."""
    inner = [names_in(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)


@pytest.mark.with_nan  # where JAX looks for NaN it keeps all buffers, to compute once more
@IMPLS
def test_donated_buffers(library, impl):
    jax, (q, k, v) = importlib.import_module("jax"), [library.array(x) for x in QKV]

    def attend(q, k, v):
        return ax.flash_attention(q, k, v, impl=impl, tile=(2, 3))

    expected = results(attend(q, k, v))[0]
    output = jax.jit(attend, donate_argnums=0)(q, k, v)
    assert q.is_deleted()
    np.testing.assert_allclose(results(output)[0], expected, rtol=1e-5, atol=1e-5)


def run_on_eight_devices(*command):
    """Run a module in a process of its own."""
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("impl", ["tiled", pytest.param("", marks=pytest.mark.rare)])
def test_shards_of_batch_and_heads(library, impl):
    """Tiles, and all other calls."""
    run_on_eight_devices("tests._sharded", impl)


def test_shards_of_plain_jit(library):
    if not importlib.import_module("attention_xp._backend.partitions").KNOWS_RULES:
        pytest.skip("this JAX takes no rules for what devices do not share out")
    run_on_eight_devices("tests._sharded_jit")


@pytest.mark.parametrize("kind", ["key", "PRNGKey"])
def test_a_jax_key_may_be_traced(library, kind):
    jax, made = importlib.import_module("jax"), [library.array(x) for x in QKV]

    def attend(key):
        return ax.flash_attention(*made, None, 0.5, rng=key)

    key = getattr(jax.random, kind)(3)
    assert_same(jax.jit(attend)(key), attend(key))
    keys = jax.random.split(key, 2)
    first, second = jax.vmap(attend)(keys)
    assert_same(first, attend(keys[0]))
    assert_same(second, attend(keys[1]))


def test_gradients_inside_jit_and_vmap(library):
    jax, stacked = importlib.import_module("jax"), mapped(library, QKV)

    def loss(q, k, v):
        return (ax.flash_attention(q, k, v, is_causal=True, query_offset=2) ** 2).sum()

    grad = jax.grad(loss, argnums=(0, 1, 2))
    assert_same(jax.jit(jax.vmap(grad))(*stacked), jax.lax.map(lambda xs: grad(*xs), tuple(stacked)))


def test_errors_come_while_tracing(library):
    jax = importlib.import_module("jax")
    q, k = library.array(normal(2, 5, 8)), library.array(normal(2, 5, 4))
    with pytest.raises(ValueError, match="key has width 4 but query has width 8"):
        jax.jit(ax.flash_attention)(q, k, k)
