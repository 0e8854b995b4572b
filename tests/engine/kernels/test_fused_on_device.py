"""The guests on a GPU, each alone: torch's kernel and cuDNN's for CuPy arrays, and JAX's cuDNN."""

import importlib

import pytest

from attention_xp import flash_attention
from attention_xp._engine.kernels import fused
from attention_xp._engine.kernels.fused import _cudnn, _cupy
from tests import reference
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs
from tests.engine.kernels.test_fused import CALLS as COMMON, fuse
from tests.engine.kernels.test_fused_cudnn import CALLS, VIEWS, agreements, fuse as fuse_halves, halves, narrow, viewed

pytestmark = pytest.mark.backends("cupy")


@pytest.fixture
def torch_alone(library, monkeypatch):
    """torch's kernel, and no other."""
    if not _cupy._has_torch():
        pytest.skip("no PyTorch with CUDA is installed")
    monkeypatch.setitem(fused._GUESTS, "cupy", (_cupy,))


@pytest.fixture
def cudnn_alone(library, monkeypatch):
    """cuDNN's kernel, and no other."""
    reason = _cudnn._refused_installation()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setitem(fused._GUESTS, "cupy", (_cudnn,))


@pytest.fixture(params=[_cupy, _cudnn], ids=["torch", "cudnn"])
def guest(request):
    """Each of them."""
    request.getfixturevalue("torch_alone" if request.param is _cupy else "cudnn_alone")
    return request.param


@pytest.mark.parametrize("options", COMMON.values(), ids=COMMON)
def test_torch_agrees_or_refuses(library, torch_alone, options):
    try:
        fuse(library, options)
    except ValueError as error:
        if "impl='fused' cannot compute this call: torch's" not in str(error):
            raise


@pytest.mark.backends("jax:gpu")
@pytest.mark.parametrize(("arrays", "options"), CALLS.values(), ids=CALLS)
def test_jax_agrees_or_refuses(library, arrays, options):
    try:
        with importlib.import_module("jax").numpy_dtype_promotion("standard"):  # it mixes dtypes itself
            fuse_halves(library, arrays, options, lse=False)
    except ValueError as error:
        if "impl='fused' cannot compute this call: " not in str(error):
            raise


@pytest.mark.parametrize(("arrays", "options"), CALLS.values(), ids=CALLS)
def test_cudnn_agrees(library, cudnn_alone, arrays, options):
    fuse_halves(library, arrays, options)


def test_each_agrees_wherever_it_does_not_refuse(library, guest):
    assert agreements(library) >= 30


@pytest.mark.parametrize("view", [view for view, _ in VIEWS.values()], ids=VIEWS)
@pytest.mark.parametrize("place", range(3))
def test_views_are_read(library, guest, place, view):
    arrays = viewed(lambda *shape: library.array(halves(*shape), "float16"), place, view)
    output = flash_attention(*arrays, impl="fused")
    assert_close(output, reference.attention(*map(to_numpy, arrays)).output, library, dtype="float16")


@pytest.mark.parametrize("is_blocking", [False, True])
def test_each_follows_the_current_stream(library, guest, is_blocking):
    cupy = importlib.import_module("cupy")
    arrays, _ = narrow(inputs((4, 8, 512, 64)), {})
    expected = reference.attention(arrays[0][:1, :1], arrays[1][:1, :1], arrays[2][:1, :1]).output
    with cupy.cuda.Stream(non_blocking=not is_blocking):
        made = [library.array(x, "float16") for x in arrays]
        # Made just before and changed just after: a kernel on another stream reads or writes something else.
        doubled = [x + x for x in made]
        output = flash_attention(doubled[0] * 0.5, doubled[1] * 0.5, doubled[2] * 0.5, impl="fused") * 1.0
        del doubled
        output = output[:1, :1] + 0.0
    assert_close(output, expected, library, dtype="float16")


def test_the_null_stream_is_that_of_torch(library, torch_alone):
    torch = importlib.import_module("torch")
    with _cupy._current_stream(library.array(halves(1), "float16")):
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
