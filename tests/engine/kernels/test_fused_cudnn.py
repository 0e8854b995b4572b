"""cuDNN's front end as a guest of CuPy: with NumPy arrays and a stand-in for the front end, and with the real one.

A stand-in is told what a graph is to compute, and where its arrays lie in memory.
"""

import re
import sys
from contextlib import AbstractContextManager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings

from attention_xp import explain, flash_attention
from attention_xp._engine.kernels import fused
from attention_xp._engine.kernels.fused import _cudnn, _cudnn_arrays, _cudnn_graph, _cupy
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp.biases import AlibiBias
from attention_xp.masks import PrefixMask
from tests import reference
from tests._assertions import assert_close
from tests._inputs import inputs, normal
from tests.engine.kernels._front_end import FrontEnd
from tests.engine.kernels.test_fused import CALLS, QKV
from tests.strategies import Case, cases

LONG = inputs((2, 4, 5, 8), (2, 2, 9, 8), (2, 2, 9, 16))
CALLS = {name: (QKV, options) for name, options in CALLS.items()} | {
    "window to both sides": (QKV, {"window": (2, 1)}),
    "window open to the left": (QKV, {"window": (None, 1), "key_lengths": np.asarray([6, 3])}),
    "window and bias": (QKV, {"window": (1, 2), "bias": normal(6, 6)}),
    "window and mask": (QKV, {"window": (2, 0), "mask": normal(6, 6) > 0.0}),
    "from the first key": (LONG, {"is_causal": True, "query_offset": 0}),
    "to the last key": (LONG, {"is_causal": True, "query_offset": 4}),
    "a window to the last key": (LONG, {"window": (2, 0), "query_offset": 4}),
    "a window with room for all": (LONG, {"window": (11, 1), "query_offset": 7}),
    "the last query": (inputs((2, 4, 1, 8), (2, 2, 9, 8)), {"is_causal": True, "query_offset": 8}),
    "no heads": (inputs((3, 6, 8)), {"key_lengths": np.asarray([1, 0, 6]), "mask": normal(3, 6, 6) > 0.0}),
    "one sequence": (inputs((6, 8)), {"query_lengths": 4, "bias": normal(6)}),
    "five axes": (inputs((2, 1, 4, 6, 8), (1, 3, 2, 6, 8)), {"mask": normal(2, 1, 1, 6, 6) > 0.0}),
    "a batch of keys for all": (inputs((2, 4, 6, 8), (1, 2, 6, 8)), {"key_lengths": np.asarray([6, 2])}),
}


class Gpu(AbstractContextManager):
    """The device of a NumPy array."""

    id = 0

    def __exit__(self, *_):
        return None


@pytest.fixture
def front_end(monkeypatch):
    """NumPy arrays go the way of CuPy's, to a stand-in of the front end."""
    stand_in = FrontEnd()
    cuda = SimpleNamespace(
        get_current_stream=lambda: SimpleNamespace(ptr=7), alloc=lambda size: SimpleNamespace(ptr=size)
    )
    kinds = {name: type(name, (), {}) for name in ("ndarray", "generic")}
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, **kinds))
    monkeypatch.setitem(sys.modules, "cudnn", stand_in)
    monkeypatch.setitem(fused._GUESTS, "numpy", (_cudnn,))
    monkeypatch.setattr("attention_xp._engine.problem.problem.is_cupy_namespace", lambda xp: True)
    monkeypatch.setattr(_cudnn, "_device", lambda a: Gpu())
    for module in (_cudnn, _cudnn_arrays):
        monkeypatch.setattr(module, "address", lambda a: a.ctypes.data)
    caches = _cudnn._plan, _cudnn._handle, _cudnn._refused_installation
    for made in caches:
        made.cache_clear()
    yield stand_in
    for made in caches:
        made.cache_clear()


def narrow(arrays, options, dtype="float16"):
    """Arrays and options with all floating numbers in 16 bits."""

    def rounded(x):
        return x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x

    return [*map(rounded, arrays)], {name: rounded(x) for name, x in options.items()}


def fuse(library, arrays, options, *, lse=True):
    """Compute a call with the guest and compare output and log-sum-exp with the formula."""
    arrays, options = narrow(arrays, options)
    given = {name: library.array(x, str(x.dtype)) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    found = flash_attention(*(library.array(x, "float16") for x in arrays), **given, impl="fused", return_lse=lse)
    expected = reference.attention(*arrays, **options)
    assert_close(found[0] if lse else found, expected.output, library, dtype="float16")
    if lse:
        assert_close(found[1], expected.lse, library, rtol=1e-3, atol=1e-3)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(("arrays", "options"), CALLS.values(), ids=CALLS)
def test_what_the_front_end_is_told(library, front_end, arrays, options):
    fuse(library, arrays, options)


@pytest.mark.backends("numpy")
def test_the_front_end_agrees_wherever_it_does_not_refuse(library, front_end):
    assert agreements(library) >= 30


def agreements(library):
    """How many random calls are not refused, all of which have to agree with the formula."""
    computed = []

    @settings(max_examples=200)
    @given(cases(("float16",), common=True, step=8))
    def agree(case: Case) -> None:
        assume(getattr(case.mask, "shape", None) != ())  # a comparison with NumPy's is no array
        output = case.by_guest(library)
        if not isinstance(output, str):
            arrays, options = case.rounded(library)
            assert_close(output, reference.attention(*arrays, **options).output, library, dtype="float16")
            computed.append(case)

    agree()
    return len(computed)


def halves(*shape):
    """Random numbers in 16 bits, at the beginning of a word."""
    return normal(*shape).astype("float16")


# A view of an array that is made, and whether kernels can read it where it lies.
VIEWS = {
    "as it is": (lambda make: make(2, 4, 6, 8), True),
    "heads behind rows": (lambda make: make(2, 6, 4, 8).swapaxes(1, 2), True),
    "a part of wide rows": (lambda make: make(2, 4, 6, 24)[..., 8:16], True),
    "every other row": (lambda make: make(2, 4, 12, 8)[:, :, ::2], True),
    "one row of many": (lambda make: make(2, 4, 1, 7, 8)[..., 2, :], True),
    "between words": (lambda make: make(2, 4, 6, 24)[..., 4:12], False),
    "rows of parts of words": (lambda make: make(2, 4, 6, 12)[..., :8], False),
    "backwards": (lambda make: make(2, 4, 6, 8)[:, :, ::-1], False),
    "columns apart": (lambda make: make(2, 4, 6, 16)[..., ::2], False),
    "one for all": (lambda make: make(1, 4, 6, 8), False),
}


@pytest.mark.parametrize(("view", "is_read"), VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("place", range(3))
def test_memory_is_read_where_it_lies_if_in_whole_words(front_end, place, view, is_read):
    arrays = viewed(halves, place, view)
    output = flash_attention(*arrays, impl="fused")
    np.testing.assert_allclose(output, reference.attention(*arrays).output, rtol=2e-3, atol=1e-3)
    ((pointers, _, _),) = front_end.logged("execute")
    assert (arrays[place].ctypes.data in pointers) == is_read


def viewed(make, place, view):
    """Query, key and value, one of them through a view."""
    arrays = [make(2, 4, 6, 8) for _ in range(3)]
    arrays[place] = view(make)
    if place and arrays[place].shape[2] == 1:
        arrays[1:] = [arrays[place]] * 2
    return arrays


def test_lengths_are_written_out_for_each_item(front_end):
    arrays, _ = narrow(QKV, {})
    output = flash_attention(*arrays, key_lengths=2, query_lengths=5, impl="fused")
    expected = reference.attention(*arrays, key_lengths=2, query_lengths=5).output
    np.testing.assert_allclose(output, expected, rtol=2e-3, atol=1e-3)


def test_padding_is_silent_for_the_front_end(front_end):
    (q, k, v), _ = narrow(QKV, {})
    k[0, :, 4:], v[1, :, 3:], q[1, :, 5:] = np.nan, np.inf, np.nan
    lengths = {"key_lengths": np.asarray([4, 3], np.int32), "query_lengths": np.asarray([6, 5], np.int32)}
    output = flash_attention(q, k, v, **lengths, impl="fused")
    np.testing.assert_allclose(output, reference.attention(q, k, v, **lengths).output, rtol=2e-3, atol=1e-3)


def test_one_graph_serves_all_calls_that_are_alike(front_end):
    arrays, _ = narrow(QKV, {})
    for _ in range(3):
        explain(*arrays, is_causal=True, impl="fused")
        flash_attention(*arrays, is_causal=True, impl="fused")
    assert len(front_end.logged("build")) == len(front_end.logged("handle")) == 1
    flash_attention(*arrays, scale=0.5, is_causal=True, impl="fused")
    assert len(front_end.logged("build")) == 2
    assert front_end.logged("stream") == [("handle", 7)] * 4
    assert {entry[1:] for entry in front_end.logged("execute")} == {(16, "handle")}


REFUSED = {
    "softcap": ({"softcap": 2.0}, "knows no softcap"),
    "sinks": ({"sinks": np.zeros(4)}, "knows no sinks"),
    "dropout": ({"dropout_rate": 0.5, "rng": 1}, "knows no dropout with a reproducible draw"),
    "a bias as a rule": ({"bias": AlibiBias(np.ones(4))}, "knows no bias but an array"),
    "a mask as a rule": ({"mask": PrefixMask(3)}, "would need this mask as an array"),
    "a wide bias": ({"bias": np.zeros((6, 6))}, "additions in more than 16 bits"),
    "an offset": ({"is_causal": True, "query_offset": 1}, "knows query_offset=0 and"),
    "offsets": ({"is_causal": True, "query_offset": np.asarray([0, 0])}, "knows query_offset=0 and"),
    "a window with lengths": ({"window": (2, 0), "key_lengths": np.asarray([3, 6])}, r"window=\(None, right\)"),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_front_end_is_not_asked_for(front_end, options, reason):
    arrays, _ = narrow(QKV, {})
    with pytest.raises(ValueError, match=reason):
        flash_attention(*arrays, **options, impl="fused")
    assert front_end.logged("build") == []


def test_lengths_with_a_causal_mask_that_ends_at_the_last_key(front_end):
    arrays, _ = narrow(LONG, {})
    with pytest.raises(ValueError, match="without lengths, query_offset=Sk - Sq"):
        flash_attention(*arrays, is_causal=True, query_offset=4, key_lengths=np.asarray([9, 8]), impl="fused")


def test_wide_arrays_are_refused(front_end):
    with pytest.raises(ValueError, match=r"in 16 bits \(float16 or bfloat16\), not in float64"):
        flash_attention(*QKV, impl="fused")


def test_what_the_kernels_cannot_do_is_told_in_their_words(front_end):
    front_end.declines = "hidden_dim should be multiple of 8\nand much more"
    arrays, _ = narrow(inputs((2, 4, 300, 12)), {})
    with pytest.raises(ValueError, match=r"cannot be built: hidden_dim should be multiple of 8;"):
        flash_attention(*arrays, impl="fused")
    assert flash_attention(*arrays).shape == arrays[0].shape


def test_an_old_library_is_refused(front_end):
    front_end.version = 91001
    arrays, _ = narrow(QKV, {})
    with pytest.raises(ValueError, match="from version 91002 on, not with 91001"):
        flash_attention(*arrays, impl="fused")


@pytest.mark.parametrize(("error", "reason"), [(ModuleNotFoundError, "no nvidia-cudnn-frontend"), (OSError, "no lib")])
def test_a_front_end_that_is_absent_or_broken(front_end, monkeypatch, error, reason):
    def fail():
        raise error("no lib")

    monkeypatch.setattr(front_end, "backend_version", fail)
    arrays, _ = narrow(QKV, {})
    with pytest.raises(ValueError, match=reason):
        flash_attention(*arrays, impl="fused")


def test_few_scores_are_not_worth_a_graph(front_end):
    few, many = (narrow(arrays, {})[0] for arrays in (QKV, inputs((2, 4, 300, 8))))
    assert not fused.is_worthwhile(Problem.of(*few, None, 0.0, {}), Wanted())
    flash_attention(*few)
    assert front_end.logged("execute") == []
    flash_attention(*many)
    assert len(front_end.logged("execute")) == 1


def test_torch_is_asked_first_and_the_front_end_next(front_end, monkeypatch, capsys):
    monkeypatch.setitem(fused._GUESTS, "numpy", (_cupy, _cudnn))
    monkeypatch.setattr(_cupy, "_has_torch", lambda: False)
    arrays, _ = narrow(QKV, {})
    assert explain(*arrays, impl="fused")["fused"] == "chosen"
    reasons = explain(*QKV, impl="dense")["fused"]
    assert re.fullmatch("CuPy arrays are handed to PyTorch.*; cuDNN's attention computes in 16 bits.*", reasons)
    capsys.readouterr()
    monkeypatch.setattr(_cupy, "_has_torch", lambda: True)
    asked = []
    monkeypatch.setattr(_cupy, "attend", lambda *x: asked.append("torch") or _cudnn.attend(*x))
    flash_attention(*arrays, impl="fused")
    flash_attention(*arrays, window=2, impl="fused")  # of which torch knows nothing
    assert asked == ["torch"]
    assert len(front_end.logged("execute")) == 2


@pytest.mark.backends("cupy")
@pytest.mark.parametrize(("arrays", "options"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("lse", [False, True], ids=["output", "lse"])
def test_the_real_front_end_understands(monkeypatch, arrays, options, lse):
    cudnn = pytest.importorskip("cudnn")
    monkeypatch.setattr(_cudnn, "_device", lambda a: Gpu())
    monkeypatch.setattr(_cudnn_arrays, "address", lambda a: a.ctypes.data)
    arrays, options = narrow(arrays, options)
    mask = options.pop("mask", None)
    spec = _cudnn._spec(Problem.of(*arrays, mask, 0.0, options), Wanted(lse=lse))
    graph, tensors = _cudnn_graph.build(cudnn, spec, None)
    assert tensors.keys() == spec.inputs.keys() | spec.outputs.keys()
    try:
        graph.validate()
    except RuntimeError as error:  # older versions ask for a GPU first
        pytest.skip(f"{error}")
