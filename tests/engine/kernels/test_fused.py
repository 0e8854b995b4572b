"""The guests: what they are handed, what they refuse, and that what they give is what was asked.

No GPU is needed: JAX's other implementation stands in for cuDNN's, and NumPy arrays for CuPy's.
"""

import importlib
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings

from attention_xp import flash_attention
from attention_xp._engine.kernels import fused
from attention_xp._engine.kernels.fused import _cupy, _jax, _torch
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp.masks import CausalMask, LengthMask, PrefixMask
from tests import reference
from tests._assertions import assert_close
from tests._backends import Backend
from tests._inputs import inputs, normal
from tests.strategies import Case, cases

QKV = inputs((2, 4, 6, 8), (2, 2, 6, 8))

CALLS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "causal window": {"is_causal": True, "window": (2, 3)},
    "window to the left": {"window": (3, 0)},
    "causal window without an end": {"is_causal": True, "window": (1, None)},
    "boolean mask": {"mask": normal(2, 1, 6, 6) > 0.3},
    "mask of a row": {"mask": normal(6) > 0.0},
    "nothing allowed": {"mask": np.zeros((6, 6), dtype=bool)},
    "causal mask that empties rows": {"is_causal": True, "mask": normal(4, 6, 6) > 0.5},
    "bias": {"bias": normal(4, 1, 6)},
    "bias that empties rows": {"bias": np.where(np.arange(6)[:, None] < 2, -np.inf, normal(6, 6))},
    "bias and mask": {"bias": normal(6, 6), "mask": normal(6, 6) > 0.0},
    "floating mask": {"mask": np.where(normal(2, 4, 6, 6) > 0.0, normal(6, 6), -np.inf)},
    "causal bias": {"is_causal": True, "bias": normal(6, 6)},
    "lengths": {"key_lengths": np.asarray([2, 6]), "query_lengths": np.asarray([6, 3])},
    "no keys": {"key_lengths": np.asarray([0, 5])},
    "causal lengths": {"is_causal": True, "key_lengths": np.asarray([0, 3]), "query_lengths": 5},
    "lengths and mask": {"key_lengths": np.asarray([1, 3]), "mask": normal(6, 6) > 0.0},
}


@pytest.fixture
def stand_in(monkeypatch, library):
    """JAX's own implementation, which takes the same arguments on any device, instead of cuDNN's."""
    library.namespace()
    monkeypatch.setattr(_jax, "_IMPLEMENTATION", "xla")
    with importlib.import_module("jax").numpy_dtype_promotion("standard"):  # it mixes integers itself
        yield


def made(library, options):
    """Options under test."""
    return {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


def fuse(library, options, arrays=QKV):
    """Compute a call with a guest and compare it with the formula."""
    output = flash_attention(*map(library.array, arrays), **made(library, options), impl="fused")
    assert_close(output, reference.attention(*arrays, **options).output, library)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_what_jax_is_handed(library, stand_in, options):
    fuse(library, options)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("shape", [(6, 8), (3, 6, 8), (2, 3, 4, 6, 8)])
def test_jax_with_any_number_of_axes(library, stand_in, shape):
    lengths = np.arange(1, 7)[: int(np.prod(shape[:-3] or shape[:-2]))]
    lengths = lengths.reshape(shape[:-3] if len(shape) > 3 else shape[:-2])
    fuse(library, {"key_lengths": lengths, "mask": normal(6, 6) > 0.0}, inputs(shape))


BROADCAST = {
    "five axes": inputs((2, 1, 4, 6, 8), (1, 3, 2, 5, 8)),
    "queries": inputs((1, 4, 6, 8), (2, 2, 5, 8)),
    "keys": inputs((2, 4, 6, 8), (1, 2, 5, 8)),
    "values": inputs((2, 4, 6, 8), (2, 2, 5, 8), (1, 2, 5, 8)),
}


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("arrays", BROADCAST.values(), ids=BROADCAST)
def test_leading_axes_that_broadcast(library, request, arrays):
    if library.like("jax"):
        request.getfixturevalue("stand_in")
    fuse(library, {"is_causal": True, "query_offset": 0}, arrays)
    fuse(library, {"key_lengths": 3}, arrays)


@pytest.mark.with_nan
@pytest.mark.backends("jax")
def test_padding_is_silent_for_jax(library, stand_in):
    q, k, v = (x.copy() for x in QKV)
    k[0, :, 4:], v[1, :, 3:] = np.nan, np.inf
    fuse(library, {"key_lengths": np.asarray([4, 3])}, (q, k, v))
    output = flash_attention(*map(library.array, (q, k, v)), LengthMask(np.asarray([4, 3])), impl="fused")
    assert_close(output, reference.attention(q, k, v, key_lengths=np.asarray([4, 3])).output, library)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("name", ["nothing allowed", "bias that empties rows", "no keys", "floating mask"])
def test_gradients_through_jax_are_finite(library, stand_in, name):
    jax = importlib.import_module("jax")
    options = made(library, CALLS[name])
    arrays = tuple(map(library.array, QKV))
    found, expected = (
        jax.grad(lambda *x, impl=impl: flash_attention(*x, **options, impl=impl).sum(), argnums=(0, 1, 2))(*arrays)
        for impl in ("fused", "dense")
    )
    for actual, desired in zip(found, expected, strict=True):
        assert_close(actual, np.asarray(desired), library)


@pytest.mark.backends("jax")
def test_jax_agrees_wherever_it_does_not_refuse(library, stand_in):
    computed = []

    @settings(max_examples=200)  # most draw what the guest refuses
    @given(cases(("float32",), common=True))
    def agree(case: Case) -> None:
        output = case.by_guest(library)
        if not isinstance(output, str):
            arrays, options = case.rounded(library)
            assert_close(output, reference.attention(*arrays, **options).output, library)
            computed.append(case)

    agree()
    assert len(computed) >= 10


REFUSED = {
    "a log-sum-exp": ({}, Wanted(lse=True), "knows no log-sum-exp in 32 bits"),
    "weights": ({}, Wanted(weights=True), "does not give the weights"),
    "softcap": ({"softcap": 2.0}, Wanted(), "knows no softcap"),
    "score_mod": ({"score_mod": lambda s, *_: s}, Wanted(), "knows no score_mod"),
    "sinks": ({"sinks": np.zeros(4)}, Wanted(), "knows no sinks"),
    "a negative scale": ({"scale": -1.0}, Wanted(), "knows no scale but a positive one"),
    "a mask rule": ({"mask": PrefixMask(3)}, Wanted(), "would need this mask as an array"),
    "an offset": ({"is_causal": True, "query_offset": 1}, Wanted(), "knows no query_offset"),
    "a window to both sides": ({"window": 2}, Wanted(), r"window=\(left, 0\)"),
    "a window and a mask": ({"window": (2, 0), "mask": np.ones((6, 6), bool)}, Wanted(), "a window with Sq == Sk only"),
    "a window and lengths": ({"window": (2, 0), "key_lengths": 3}, Wanted(), "a window with Sq == Sk only"),
}


@pytest.mark.backends("jax")
@pytest.mark.parametrize(("options", "wanted", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_jax_refuses(library, stand_in, options, wanted, reason):
    assert_refused(library, options, wanted, reason)


def assert_refused(library, options, wanted=None, reason="", arrays=QKV, dtype="float32"):
    """The reason why a guest cannot compute a call."""
    options = made(library, options)
    mask = options.pop("mask", None)
    problem = Problem.of(*(library.array(x, dtype) for x in arrays), mask, 0.0, options)
    found = fused.refusal(problem, wanted or Wanted())
    assert found is None if reason is None else re.search(reason, found or ""), found


@pytest.mark.backends("jax")
@pytest.mark.parametrize(
    ("capability", "width", "dtype", "options", "reason"),
    [
        ("7.5", 64, "float16", {}, r"compute capability 8.0 \(Ampere\) or later"),
        ("8.0", 64, "float16", {}, None),
        ("8.0", 128, "bfloat16", {"is_causal": True}, None),
        ("8.0", 136, "float16", {}, "a multiple of 8 up to 128, not 136"),
        ("9.0", 136, "float16", {}, None),
        ("10.3", 264, "float16", {}, "a multiple of 8 up to 256, not 264"),
        ("9.0", 12, "float16", {}, "a multiple of 8 up to 256, not 12"),
        ("9.0", 64, "float32", {}, r"in 16 bits \(float16 or bfloat16\), not in float32"),
        ("9.0", 64, "float16", {"bias": np.zeros((6, 6))}, "additions in more than 16 bits"),
        ("9.0", 64, "float16", {"mask": np.ones((6, 6), bool)}, None),
    ],
)
def test_what_cudnn_demands(library, monkeypatch, capability, width, dtype, options, reason):
    monkeypatch.setattr(_jax, "cuda_device", lambda query: SimpleNamespace(compute_capability=capability))
    assert_refused(library, options, reason=reason, arrays=inputs((2, 4, 6, width)), dtype=dtype)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("name", ["mask", "bias"])
def test_odd_lengths_under_an_array(library, stand_in, name):
    options = {name: np.ones((6, 7), bool) if name == "mask" else np.ones((6, 7))}
    assert_refused(library, options, reason="even lengths", arrays=inputs((2, 4, 6, 8), (2, 4, 7, 8)))


@pytest.mark.backends("jax")
def test_jax_needs_a_cuda_device_and_equal_widths(library):
    if library.needs_gpu:
        pytest.skip("there is one")
    assert_refused(library, {}, reason="needs a CUDA device")
    assert_refused(library, {}, reason="D is 8 but Dv is 4", arrays=inputs((2, 6, 8), (2, 6, 8), (2, 6, 4)))
    problem = Problem.of(*map(library.array, QKV), None, 0.0, {})
    assert not fused.is_worthwhile(problem, Wanted())


@pytest.mark.backends("jax")
def test_a_cuda_device_makes_cudnn_worthwhile_except_under_vmap(library, monkeypatch):
    jax = importlib.import_module("jax")
    monkeypatch.setattr(_jax, "cuda_device", lambda query: SimpleNamespace(compute_capability="9.0"))
    answers = []

    def ask(query, key, value):
        answers.append(fused.is_worthwhile(Problem.of(query, key, value, None, 0.0, {}), Wanted()))
        return query

    ask(*map(library.array, QKV))
    jax.jit(ask)(*map(library.array, QKV))
    jax.vmap(ask, in_axes=(0, None, None))(library.array(normal(2, 6, 8)), *(library.array(normal(6, 8)),) * 2)
    assert answers == [True, True, False]


@pytest.fixture
def cupy_stand_in(monkeypatch):
    """NumPy arrays go the way of CuPy's, and there is no stream."""
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(fused._GUESTS, "numpy", (_cupy,))
    monkeypatch.setattr(_cupy, "_has_torch", lambda: True)
    monkeypatch.setattr("attention_xp._engine.problem.problem.is_cupy_namespace", lambda xp: True)
    monkeypatch.setattr(_cupy, "_current_stream", lambda query: nullcontext())
    return torch


@pytest.mark.backends("torch")
def test_arrays_reach_torch_and_come_back(cupy_stand_in):
    library, computed = Backend.NUMPY, []

    @settings(max_examples=200)
    @given(cases(library.dtypes(), common=True))
    def agree(case: Case) -> None:
        assume(getattr(case.mask, "shape", None) != ())  # a comparison with NumPy's is no array
        try:
            output = case.by_guest(library)
        except BufferError:  # NumPy broadcasts to read-only memory
            return
        if not isinstance(output, str):
            arrays, options = case.rounded(library)
            assert_close(output, reference.attention(*arrays, **options).output, library, dtype=case.dtype)
            computed.append(case)

    agree()
    assert len(computed) >= 50


@pytest.mark.backends("torch")
def test_arrays_are_exchanged_without_copies(cupy_stand_in):
    q, k, v = (x.astype(np.float32) for x in QKV)
    keep, lengths = np.tri(6, dtype=bool), np.asarray([2, 6])
    options = {"bias": normal(6, 6).astype(np.float32), "key_lengths": lengths.astype(np.int32)}
    problem = Problem.of(q, k, v, keep, 0.0, options)
    converted = _cupy._for_torch(problem)
    assert converted.dtype == cupy_stand_in.float32
    assert converted.xp.__name__ == "array_api_compat.torch"
    pairs = [(q, converted.query), (k, converted.key), (v, converted.value), (options["bias"], converted.addends[0])]
    pairs += [(options["key_lengths"], converted.rules[0].lengths), (keep, converted.rules[1].array)]
    for array, tensor in pairs:
        assert isinstance(tensor, cupy_stand_in.Tensor)
        assert tensor.data_ptr() == array.ctypes.data
    assert converted.rules[1].array.dtype == cupy_stand_in.bool


@pytest.mark.backends("torch")
def test_what_torch_refuses_is_refused_for_cupy(cupy_stand_in):
    with pytest.raises(ValueError, match="torch's scaled_dot_product_attention knows no softcap"):
        flash_attention(*QKV, softcap=2.0, impl="fused")
    with pytest.raises(ValueError, match="would need this mask as an array"):
        flash_attention(*QKV, CausalMask(), query_offset=1, impl="fused")


@pytest.mark.parametrize(("pointer", "stream"), [(0, ("default", 3)), (7, ("external", 7, 3)), (2, ("external", 2, 3))])
def test_the_stream_of_cupy_becomes_that_of_torch(monkeypatch, pointer, stream):
    cuda = SimpleNamespace(
        default_stream=lambda device: ("default", device),
        ExternalStream=lambda pointer, device: ("external", pointer, device),
        stream=lambda stream: stream,
    )
    of_device = {3: SimpleNamespace(ptr=pointer)}
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(get_current_stream=of_device.get)))
    assert _cupy._current_stream(SimpleNamespace(device=SimpleNamespace(id=3))) == stream


@pytest.mark.backends("torch")
def test_arrays_of_cupy_are_outside_of_autocast(cupy_stand_in):
    arrays = [x.astype(np.float32) for x in QKV]
    with cupy_stand_in.autocast("cpu", dtype=cupy_stand_in.bfloat16):
        output = flash_attention(*arrays, impl="fused")
    np.testing.assert_allclose(output, reference.attention(*arrays).output, rtol=2e-5, atol=1e-5)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("name", ["nothing allowed", "bias that empties rows", "no keys", "floating mask"])
def test_rows_that_a_kernel_averages_are_zero(library, monkeypatch, name):
    torch = importlib.import_module("torch")
    kernel = torch.nn.functional.scaled_dot_product_attention

    def average(*arrays, attn_mask, **options):
        """Exclude by the lowest number of 16 bits, as cuDNN's kernel inside torch has done."""
        excluded = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == -torch.inf
        return kernel(*arrays, attn_mask=torch.where(excluded, -65504.0, 1.0 * attn_mask), **options)

    monkeypatch.setattr(_torch, "_kernel", lambda **_: average)
    monkeypatch.setattr(_torch, "_gives_zeros", lambda query: False)
    fuse(library, CALLS[name])


@pytest.mark.backends("torch")
@pytest.mark.parametrize("impl", ["fused", "auto"])
def test_the_name_of_the_kernel_may_lead_here(library, monkeypatch, impl):
    torch = importlib.import_module("torch")
    functional, calls = torch.nn.functional, []

    def routed(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        calls.append(len(calls))
        assert len(calls) < 3, "called by what it calls"
        return flash_attention(query, key, value, attn_mask, dropout_p, is_causal=is_causal, scale=scale, impl=impl)

    query, key, value = (library.array(x) for x in inputs((1, 4, 256, 32)))
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", routed)
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert len(calls) == 1
    torch.testing.assert_close(output, expected)
    compiled = torch.compile(lambda *xs: flash_attention(*xs, impl=impl), fullgraph=True, backend="eager")
    assert len(calls) == 1
    torch.testing.assert_close(compiled(query, key, value), flash_attention(query, key, value, impl="dense"))


def test_cupy_without_a_torch_that_has_cuda(monkeypatch):
    monkeypatch.setitem(fused._GUESTS, "numpy", (_cupy,))
    monkeypatch.setattr(_cupy, "_has_torch", lambda: False)
    with pytest.raises(ValueError, match="no PyTorch with CUDA is installed"):
        flash_attention(*QKV, impl="fused")
    assert flash_attention(*QKV).shape == QKV.query.shape


@pytest.mark.backends("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_adds_what_has_the_bits_of_the_query(library, dtype):
    arrays = [library.array(x, dtype) for x in QKV]
    mask = library.array(np.where(normal(6, 6) > 0.0, normal(6, 6), -np.inf), dtype)
    output = flash_attention(*arrays, mask, impl="fused")
    expected = flash_attention(*arrays, mask, impl="dense")
    assert_close(output, np.asarray(expected.float()), library, dtype=dtype)
    for refused in ({"mask": library.array(normal(6, 6))}, {"mask": mask, "bias": mask}):
        with pytest.raises(ValueError, match="additions in more than 16 bits"):
            flash_attention(*arrays, **refused, impl="fused")


@pytest.mark.backends("torch")
@pytest.mark.parametrize("scale", [-1.0, 0.0])
def test_a_scale_that_is_not_positive_does_not_reach_torch(library, scale):
    arrays = [library.array(normal(1, 2, 512, 8, seed=i), "float32") for i in range(3)]
    output, expected = (flash_attention(*arrays, scale=scale, is_causal=True, impl=impl) for impl in ("auto", "dense"))
    assert_close(output, np.asarray(expected), library)
    with pytest.raises(ValueError, match="knows no scale but a positive one"):
        flash_attention(*arrays, scale=scale, impl="fused")
