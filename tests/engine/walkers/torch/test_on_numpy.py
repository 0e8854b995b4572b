"""Tensors in the memory of this process are attended with by NumPy's walkers, unless torch has to see what is done."""

import warnings

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp._engine.plan import borders
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.torch import on_numpy
from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from attention_xp.masks import BlockMask, FunctionMask, longformer_mask
from attention_xp.masks._look_up import kept_by
from tests import reference
from tests._inputs import inputs
from tests.engine.walkers._few_rows import counted

pytestmark = pytest.mark.backends("torch")

LENGTH = 90
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "window": (20, 0)},
    "lengths": {"key_lengths": [50, 90], "query_lengths": [90, 70]},
    "softcap": {"softcap": 5.0},
    "bias": {"bias": (4, LENGTH, LENGTH)},
    "sinks": {"sinks": (4,)},
    "dropout": {"dropout_rate": 0.3, "rng": 5},
    "boolean mask": {"mask": np.random.default_rng(3).random((LENGTH, LENGTH)) < 0.6},
    "slopes": {"bias": AlibiBias(np.asarray([0.5, 0.1, 0.02, 3.0])), "is_causal": True},
    "table": {"bias": RelativePositionBias(np.random.default_rng(4).standard_normal((32, 4)))},
    "global": {"mask": longformer_mask(9, np.arange(LENGTH) < 3)},
}


@pytest.fixture(autouse=True)
def _small_problems_are_none(monkeypatch):
    monkeypatch.setattr(on_numpy, "formula_is_faster", lambda problem: False)


@pytest.fixture
def torch(library):  # a test without a backend would run once for all of them
    return pytest.importorskip("torch")


def call(torch, options, dtype="float64", kv_heads=4):
    """Query, key, value and options as tensors."""
    rng = np.random.default_rng(0)

    def tensor(shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(getattr(torch, dtype))

    arrays = [tensor((2, heads, LENGTH, 8)) for heads in (4, kv_heads, kv_heads)]
    made = {
        name: tensor(given)
        if name in ("bias", "sinks") and isinstance(given, tuple)
        else torch.asarray(given)
        if isinstance(given, list | np.ndarray)
        else given
        for name, given in options.items()
    }
    return arrays, made


def problem(arrays, options):
    options = dict(options)
    return Problem.of(*arrays, options.pop("mask", None), options.pop("dropout_rate", 0.0), {"impl": "tiled"} | options)


def in_loops(monkeypatch, function):
    with monkeypatch.context() as patch:
        for name in ("forward", "backward"):
            patch.setattr(on_numpy, name, lambda *_: None)
        return function()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_answers_are_those_of_the_loops(torch, monkeypatch, options, kv_heads):
    arrays, options = call(torch, options, kv_heads=kv_heads)
    gradient = torch.ones_like(arrays[0])

    def answers():
        output, pull = attention_vjp(*arrays, impl="tiled", **options)
        return output, *(a[0] if isinstance(a, tuple) else a for a in pull(gradient) if a is not None)

    assert on_numpy.forward(problem(arrays, options)) is not None
    for x, y in zip(answers(), in_loops(monkeypatch, answers), strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [OPTIONS[name] for name in ("softcap", "window", "bias", "sinks")])
def test_sixteen_bits_are_computed_in_32_and_rounded_once(torch, dtype, options):
    narrow, options = call(torch, options, dtype)
    arrays = [a.requires_grad_() for a in narrow]
    wide = [a.detach().float().requires_grad_() for a in narrow]
    seen, _ = on_numpy._views(problem([a.detach() for a in narrow], options), ())
    assert {a.dtype for a in (seen.query, seen.key, seen.value)} == {np.dtype("float32")}
    found, expected = (flash_attention(*x, impl="tiled", **options) for x in (arrays, wide))
    gradients = torch.autograd.grad(expected.sum(), wide)
    for a, b in zip((found, *torch.autograd.grad(found.sum(), arrays)), (expected, *gradients), strict=True):
        assert a.dtype == getattr(torch, dtype)
        torch.testing.assert_close(a.float(), b, rtol=0.6 * torch.finfo(a.dtype).eps, atol=1e-6)


class Halved(Bias):
    """A bias as a user writes it, which computes with what it has captured."""

    def __init__(self, slopes):
        self.slopes = slopes

    def values(self, region):
        return -0.5 * region.per_head(self.slopes) * region.floating(abs(region.q_idx - region.kv_idx))


@pytest.mark.parametrize(
    ("kind", "shape", "is_explicit"),
    [(AlibiBias, (4,), True), (AlibiBias, (2, 4), True), (RelativePositionBias, (32, 4), True), (Halved, (4,), False)],
)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_gradients_of_a_rule_are_explicit_unless_it_may_capture(torch, kind, shape, is_explicit, dtype):
    arrays, options = call(torch, {"key_lengths": [0, 70], "sinks": (4,), "softcap": 5.0}, dtype, kv_heads=2)
    parameter = torch.from_numpy(np.random.default_rng(1).random(shape)).to(arrays[0].dtype)
    for a in (*arrays, parameter, options["sinks"]):
        a.requires_grad_()
    bias, of_numpy = kind(parameter), kind(np.asarray(parameter.detach().double()))
    outputs, found = [], []
    for impl in ("tiled", "dense"):
        output = flash_attention(*arrays, bias=bias, is_causal=True, impl=impl, **options)
        found.append(torch.autograd.grad(output.sum(), (*arrays, parameter, options["sinks"])))
        outputs.append(output)
    assert ("Tiled" in outputs[0].grad_fn.name()) is (is_explicit and dtype == "float64")
    eps = float(torch.finfo(arrays[0].dtype).eps)
    for one, other in zip((outputs[0], *found[0]), (outputs[1], *found[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=4 * eps, atol=64 * eps * float(other.detach().abs().max()))
    alone = flash_attention(*arrays, bias=of_numpy, is_causal=True, impl="tiled", **options)
    torch.testing.assert_close(alone, outputs[0], rtol=4 * eps, atol=4 * eps)


def test_repeated_numbers_are_not_repeated_when_they_are_widened(torch):
    head = torch.ones((1, 1, LENGTH, 8), dtype=torch.bfloat16)
    seen, _ = on_numpy._views(problem([head.expand(2, 4, LENGTH, 8)] * 3, {}), ())
    assert seen.key.strides[:2] == (0, 0)
    assert seen.key.shape == (2, 4, LENGTH, 8)


def test_small_problems_stay_with_torch(torch, monkeypatch):
    monkeypatch.undo()
    few, many = (torch.zeros((1, 8, length, 8)) for length in (50, 1024))
    assert on_numpy.forward(problem([few] * 3, {})) is None
    assert on_numpy.forward(problem([many] * 3, {})) is not None


def test_nothing_is_copied_on_the_way_in(torch):
    arrays, _ = call(torch, {})
    seen, _ = on_numpy._views(problem(arrays, {}), ())
    for tensor, array in zip(arrays, (seen.query, seen.key, seen.value), strict=True):
        assert array.ctypes.data == tensor.data_ptr()


def test_a_mask_of_numpy_arrays_keeps_what_it_has_counted(torch):
    arrays, _ = call(torch, {})
    mask = BlockMask(np.eye(9, dtype=bool), 10)
    flash_attention(*arrays, mask, impl="tiled")
    assert kept_by(mask)["plans"]


def test_torch_tells_how_many_threads_there_are(torch, monkeypatch):
    from attention_xp._engine.walkers.numpy import forward  # noqa: PLC0415

    asked, run = [], forward.run_jobs
    monkeypatch.setattr(
        forward, "run_jobs", lambda jobs, worker, threads: asked.append(threads) or run(jobs, worker, 1)
    )
    arrays, _ = call(torch, {})
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            flash_attention(*arrays, impl="tiled")
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 3]


def test_what_torch_follows_or_records_is_not_taken_away(torch):
    arrays, _ = call(torch, {})
    followed = [arrays[0].clone().requires_grad_(), *arrays[1:]]
    assert on_numpy.forward(problem(followed, {})) is None
    with torch.no_grad():
        assert on_numpy.forward(problem(followed, {})) is not None
    assert on_numpy.forward(problem(arrays, {"score_mod": lambda score, b, h, q, k: score})) is None
    assert on_numpy.forward(problem(arrays, {"mask": FunctionMask(lambda b, h, q, k: q >= k)})) is None
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda q: flash_attention(q, *arrays[1:], impl="tiled"))(
        arrays[0]
    )
    other = torch.randn_like(arrays[0])
    torch.testing.assert_close(traced(other), flash_attention(other, *arrays[1:], impl="tiled"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by torch's own forward mode
def test_tangents_go_through_the_gradients(torch):
    from torch.autograd import forward_ad  # noqa: PLC0415

    arrays, _ = call(torch, {})
    tangent = torch.linspace(-1.0, 1.0, arrays[0].numel(), dtype=arrays[0].dtype).reshape(arrays[0].shape)

    def tangents(impl, which):
        with forward_ad.dual_level():
            given = [*arrays, torch.ones_like(tangent)]
            given[which] = forward_ad.make_dual(given[which], tangent)
            _, pull = attention_vjp(*given[:3], impl=impl)
            return [forward_ad.unpack_dual(a).tangent for a in pull(given[3])[:3]]

    for which in (0, 3):
        for x, y in zip(tangents("tiled", which), tangents("dense", which), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def test_the_results_of_jit_trace_follow_their_input(torch):
    arrays, _ = call(torch, {})
    with warnings.catch_warnings():  # that it is deprecated, and what of a tensor Python was told
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda q: flash_attention(q, *arrays[1:], impl="tiled"), arrays[0], check_trace=False)
    other = torch.randn_like(arrays[0])
    torch.testing.assert_close(traced(other), flash_attention(other, *arrays[1:], impl="tiled"))


def test_few_rows_without_gradients_are_computed_by_numpy(torch, monkeypatch):
    """As in decoding: torch's formula takes longer where loops are compiled, and knows gradients."""
    calls = counted(monkeypatch)
    monkeypatch.setattr(borders, "_LARGE_HEAD", 0)
    arrays, sinks = [torch.from_numpy(x).float() for x in inputs((2, 6, 1, 64), (2, 2, 300, 64))], torch.arange(6.0)
    whole = reference.attention(*(x.numpy() for x in arrays), sinks=sinks.numpy())
    output, lse = flash_attention(*arrays, return_lse=True, sinks=sinks)
    np.testing.assert_allclose(output, whole.output, atol=2e-6)
    np.testing.assert_allclose(lse, whole.lse, atol=2e-6)
    assert len(calls) > 0
    calls.clear()
    arrays[0].requires_grad_()
    flash_attention(*arrays, sinks=sinks).sum().backward()
    assert calls == []
    assert arrays[0].grad is not None
