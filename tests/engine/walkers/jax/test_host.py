"""A program of JAX on the CPU hands large problems to NumPy's compiled loops: the same numbers as loops of its own."""

import importlib
import signal
import time
from functools import partial

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp._engine.walkers.jax import host
from attention_xp._engine.walkers.numpy.compiled import found
from attention_xp.biases import AlibiBias
from attention_xp.masks import CausalMask, FunctionMask, SegmentMask, WindowMask, longformer_mask
from tests._backends import to_numpy
from tests._inputs import normal

pytestmark = pytest.mark.backends("jax")

B, H, HKV, SQ, SK, D, DV = 2, 4, 2, 70, 90, 16, 24
CALL = "python_cpu_callback"

OPTIONS = {
    "nothing": {},
    "causal": {"is_causal": True, "query_offset": SK - SQ},
    "a window": {"window": (20, 5), "query_offset": 13},
    "rules": {"mask": longformer_mask(10, np.arange(SK) % 40 == 0) | CausalMask(), "query_offset": 13},
    "segments": {"mask": SegmentMask(np.arange(SQ) // 20, np.arange(SK) // 25)},
    "an array": {"mask": normal(B, 1, SQ, SK) > -0.5},
    "lengths": {"key_lengths": np.asarray([90, 0]), "query_lengths": np.asarray([70, 11])},
    "offsets": {"is_causal": True, "query_offset": np.asarray([13, -4])},
    "soft cap": {"softcap": 2.0, "scale": 0.7},
    "a scale": {"scale": np.asarray(0.3)},
    "sinks": {"sinks": normal(H)},
    "alibi": {"bias": AlibiBias(np.asarray([0.5, 0.25, 0.125, 0.0625])), "query_offset": 20},
    "dropout": {"dropout_rate": 0.3, "rng": 5, "item_ids": np.asarray([4, 9])},
}


@pytest.fixture(autouse=True)
def jax(library, monkeypatch):
    """Let numba compile the loops of calls of every size, and forget what was compiled for others."""
    pytest.importorskip("numba")
    jax = importlib.import_module("jax")
    jax.clear_caches()
    monkeypatch.setattr(found, "FEWEST_PAIRS", 0)
    yield jax
    jax.clear_caches()


@pytest.fixture
def arrays(library):
    shapes = (B, H, SQ, D), (B, HKV, SK, D), (B, HKV, SK, DV)
    return [library.array(normal(*shape, seed=i).astype("float32")) for i, shape in enumerate(shapes)]


def held(library, thing):
    """Options with arrays of the library in place of NumPy's."""
    return {
        name: library.array(x.astype("float32") if x.dtype == float else x) if isinstance(x, np.ndarray) else x
        for name, x in thing.items()
    }


def with_slopes(jax, options, *, impl="tiled"):
    """Return a compiled function that returns output and log-sum-exp, and gradients of the sum of their sines."""

    def both(*arrays):
        output, lse = flash_attention(*arrays, return_lse=True, impl=impl, **options)
        of_output, of_lse = (
            jax.numpy.sin(x.astype(lse.dtype)) for x in (output, jax.numpy.where(lse > -99.0, lse, 0.0))
        )
        return of_output.sum() + of_lse.sum(), (output, lse)

    return jax.jit(jax.value_and_grad(both, argnums=(0, 1, 2), has_aux=True))


def is_handed_over(function, *arrays):
    return CALL in function.lower(*arrays).as_text()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_numbers_and_gradients(jax, library, arrays, name):
    options = held(library, OPTIONS[name])
    tiled, dense = (with_slopes(jax, options, impl=impl) for impl in ("tiled", "dense"))
    assert is_handed_over(tiled, *arrays)
    for one, other in zip(jax.tree.leaves(tiled(*arrays)), jax.tree.leaves(dense(*arrays)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(jax, arrays, dtype):
    if dtype == "float64" and not jax.config.jax_enable_x64:
        pytest.skip("64-bit types are off")
    tiled, dense = (with_slopes(jax, {"is_causal": True, "query_offset": 20}, impl=impl) for impl in ("tiled", "dense"))
    arrays = [a.astype(dtype) for a in arrays]
    assert is_handed_over(tiled, *arrays)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == "float64" else {"rtol": 0.02, "atol": 0.02}
    for one, other in zip(jax.tree.leaves(tiled(*arrays)), jax.tree.leaves(dense(*arrays)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(to_numpy(one).astype(float), to_numpy(other).astype(float), **close)


def test_options_that_a_program_computes(jax, arrays):
    @jax.jit
    def attend(offset, cap, mask, *arrays):
        return flash_attention(*arrays, mask, is_causal=True, query_offset=offset, scale=cap, impl="tiled")

    keep = jax.numpy.asarray(normal(SQ, SK) > -0.5)
    for offset, scale in ((0, 0.1), (20, 0.3)):
        assert is_handed_over(attend, offset, scale, keep, *arrays)
        expected = flash_attention(*arrays, keep, is_causal=True, query_offset=offset, scale=scale, impl="dense")
        np.testing.assert_allclose(attend(offset, scale, keep, *arrays), expected, rtol=1e-5, atol=1e-5)


def test_rules_follow_their_arrays_from_call_to_call(jax, arrays):
    @jax.jit
    def attend(ids, *arrays):
        mask = SegmentMask(ids[:SQ], ids) & WindowMask(30, 30)
        return flash_attention(*arrays, mask, query_offset=0, impl="tiled")

    for size in (10, 10, 35, 10):
        ids = jax.numpy.arange(SK) // size
        assert is_handed_over(attend, ids, *arrays)
        mask = SegmentMask(ids[:SQ], ids) & WindowMask(30, 30)
        expected = flash_attention(*arrays, mask, query_offset=0, impl="dense")
        np.testing.assert_allclose(attend(ids, *arrays), expected, rtol=1e-5, atol=1e-5)


def test_in_loops_and_checkpoints(jax, arrays):
    q, k, v = arrays

    def loss(q, impl):
        def step(x, _):
            return x + flash_attention(x, k, v[..., :D], impl=impl), None

        return (jax.lax.scan(jax.checkpoint(step), q, None, length=3)[0] ** 2).sum()

    first, second = (jax.jit(jax.grad(partial(loss, impl=impl))) for impl in ("tiled", "dense"))
    assert is_handed_over(first, q)
    np.testing.assert_allclose(first(q), second(q), rtol=1e-4, atol=1e-4)


def test_second_derivatives(jax, arrays):
    def curved(impl):
        def loss(*arrays):
            return (flash_attention(*arrays, impl=impl) ** 2).sum()

        return jax.jit(jax.grad(lambda *arrays: (jax.grad(loss)(*arrays) ** 2).sum(), argnums=(0, 1, 2)))

    for one, other in zip(curved("tiled")(*arrays), curved("dense")(*arrays), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * float(abs(other).max()))


def test_what_is_mapped_or_exported_stays_in_the_program(jax, arrays):
    stacked = [jax.numpy.stack([a, 2.0 * a]) for a in arrays]
    attend = partial(flash_attention, impl="tiled")
    expected = np.stack([attend(*(a[i] for a in stacked)) for i in (0, 1)])
    mapped = jax.jit(jax.vmap(attend))
    assert not is_handed_over(mapped, *stacked)
    np.testing.assert_allclose(mapped(*stacked), expected, rtol=1e-5, atol=1e-5)
    export = importlib.import_module("jax.export")
    exported = export.deserialize(export.export(jax.jit(attend))(*arrays).serialize())
    np.testing.assert_allclose(exported.call(*arrays), expected[0], rtol=1e-5, atol=1e-5)


def test_functions_and_gradients_of_what_is_added_stay_in_the_program(jax, arrays):
    for options in (
        {"score_mod": lambda score, b, h, q_idx, kv_idx: 0.5 * score},
        {"mask": FunctionMask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)},
    ):
        options |= {"query_offset": 0}
        assert not is_handed_over(jax.jit(partial(flash_attention, impl="tiled", **options)), *arrays)
    bias = jax.numpy.asarray(normal(H, SQ, SK).astype("float32"))

    def loss(bias, impl):
        return (flash_attention(*arrays, bias=bias, impl=impl) ** 2).sum()

    tiled, dense = (jax.jit(jax.grad(partial(loss, impl=impl))) for impl in ("tiled", "dense"))
    np.testing.assert_allclose(tiled(bias), dense(bias), rtol=1e-4, atol=1e-4)


def test_a_program_that_is_kept_on_disk_holds_no_python(jax, arrays, tmp_path):
    attend = partial(flash_attention, impl="tiled")
    assert is_handed_over(jax.jit(attend), *arrays)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        assert not is_handed_over(jax.jit(partial(attend)), *arrays)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_subnormal_numbers_are_kept(jax, library):
    """Threads of a program count them as 0."""
    x = library.array(np.zeros((1, 1, 80, 16), "float32"))
    value = library.array(np.full((1, 1, 80, 16), 1e-40, "float32"))
    output = jax.jit(partial(flash_attention, impl="tiled"))(x, x, value)
    np.testing.assert_allclose(output, value, rtol=1e-4)


def test_an_error_reaches_the_caller(jax, arrays, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(host._Call, "results", fail)
    with pytest.raises(Exception, match="no such luck"):
        flash_attention(*arrays, impl="tiled").block_until_ready()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer that interrupts")
def test_an_interrupt_waits_for_the_task(jax):
    done = []

    def slow():
        time.sleep(0.3)
        done.append(True)
        return done

    def interrupt():
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, lambda *_: interrupt())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            host._on_thread(slow)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert done


def test_types_of_64_bits_that_one_thread_alone_has(jax, library):
    if jax.config.jax_enable_x64:
        pytest.skip("64-bit types are on everywhere")
    attend = jax.jit(partial(flash_attention, impl="tiled"))
    home = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    with home.enable_x64(True):
        x = jax.numpy.ones((1, 1, 80, 16), "float64")
        program = attend.lower(x, x, x).compile()
    np.testing.assert_allclose(program(x, x, x), x, rtol=1e-12)


def test_outside_of_programs(arrays, jax):
    output, vjp = attention_vjp(*arrays, impl="tiled")
    expected, exact = attention_vjp(*arrays, impl="dense")
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(vjp(output)[:3], exact(output)[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
