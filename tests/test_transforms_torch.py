"""What torch makes of a function, on every kernel: mapped, differentiated, compiled, exported, narrowed, recomputed."""

import importlib
import shutil

import numpy as np
import pytest
from array_api_compat import array_namespace

import attention_xp as ax
from attention_xp.biases import AlibiBias
from attention_xp.masks import CausalMask, PrefixMask, SegmentMask
from tests import _public_calls as public
from tests._backends import to_numpy
from tests._inputs import normal
from tests._transforms import assert_same, mapped, one_by_one, results
from tests.score_mods import bent

pytestmark = [
    pytest.mark.backends("torch"),
    # torch loads its forward-mode rules, and its exporter, with functions of its own that it has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's kernel, mapped
]

SMALL = {"tile": (2, 3)}  # several tiles, of sizes that do not divide the lengths


def flash(**options):
    """A call of a kernel with options that hold no array."""
    return lambda how: lambda q, k, v: ax.flash_attention(q, k, v, **options, **how)


def parts(how):
    """Attention to two parts of the keys, merged."""

    def attend(q, k, v):
        some = [
            ax.flash_attention(q, k[..., s, :], v[..., s, :], return_lse=True, **how)
            for s in (slice(3), slice(3, None))
        ]
        return ax.merge_attention(*zip(*some, strict=True))

    return attend


def with_arrays(**names):
    """A call of a kernel whose further arguments are options."""
    return lambda how: (
        lambda q, k, v, *arrays: ax.flash_attention(q, k, v, **dict(zip(names, arrays, strict=True)), **how)
    )


def of_two_segments(how):
    """Attention inside segments, of which the arrays are given."""
    return lambda q, k, v, a, b: ax.flash_attention(q, k, v, SegmentMask(a, b), query_offset=2, **how)


def with_slopes(how):
    """ALiBi with slopes that are given."""
    return lambda q, k, v, slopes: ax.flash_attention(q, k, v, bias=AlibiBias(slopes), query_offset=2, **how)


def with_score_mod(how):
    """Scores that a function bends; made when called, since it needs torch."""
    return lambda q, k, v: ax.flash_attention(q, k, v, score_mod=bent(array_namespace(q)), **how)


def own_gradients(how):
    """The gradients that `attention_vjp` gives."""
    return lambda q, k, v, g: tuple(ax.attention_vjp(q, k, v, is_causal=True, query_offset=2, **how)[1](g)[:3])


QKV = public.QKV
SEGMENTS = np.asarray([0, 0, 0, 1, 1]), np.asarray([0, 0, 0, 0, 1, 1, 1])
KERNEL_CALLS = {  # how a kernel is told to compute -> a function, and its arguments
    "weights": (lambda how: lambda q, k, v: ax.scaled_dot_product_attention(q, k, v, **how), QKV),
    "plain": (flash(), QKV),
    "square causal": (flash(is_causal=True), (normal(2, 4, 5, 8), *(x[..., :5, :] for x in QKV[1:]))),
    "causal": (flash(is_causal=True, query_offset=2, return_lse=True), QKV),
    "window": (flash(window=(2, 1), query_offset=1), QKV),
    "mask rules": (flash(mask=CausalMask() | PrefixMask(3), query_offset=2), QKV),
    "segments": (of_two_segments, (*QKV, *SEGMENTS)),
    "boolean mask": (with_arrays(mask=0), (*QKV, public.KEEP)),
    "bias": (with_arrays(bias=0), (*QKV, normal(4, 5, 7))),
    "lengths": (with_arrays(query_lengths=0, key_lengths=0), (*QKV, np.asarray([2, 5]), np.asarray([7, 3]))),
    "score_mod": (with_score_mod, QKV),
    "bias rule": (with_slopes, (*QKV, np.asarray([0.5, 0.25, 0.1, 0.05]))),
    "parts of the keys": (parts, QKV),
    "vjp": (own_gradients, (*QKV, normal(2, 4, 5, 8, seed=3))),
}
FUSED = ("plain", "square causal", "boolean mask", "bias", "lengths")  # what torch's kernel can
HOW = {
    f"{name}, {impl}": (make({"impl": impl} | (SMALL if impl == "tiled" else {})), arguments)
    for name, (make, arguments) in KERNEL_CALLS.items()
    for impl in ("dense", "tiled", *(["fused"] if name in FUSED else []))
}
EXACT = {name: call for name, call in HOW.items() if not name.endswith("fused")}
TILED = {name: call for name, call in HOW.items() if name.endswith("tiled")}
EVERYTHING = HOW | public.CALLS


def each(calls):
    """Run a test on all of these calls."""
    return pytest.mark.parametrize(("function", "arguments"), calls.values(), ids=calls)


def torch_of(library, arguments, dtype=None):
    """torch, and arguments on it; floats of one dtype."""
    made = [library.array(x, dtype if x.dtype.kind == "f" else None) for x in arguments]
    return importlib.import_module("torch"), made


def loss_of(function):
    """The sum of all results, each number with a weight of its own."""

    def loss(*arguments):
        outcome = function(*arguments)
        total = 0.0
        for x in outcome if isinstance(outcome, tuple) else (outcome,):
            if x is not None and x.is_floating_point():
                weights = x.detach().new_ones(x.shape).cumsum(-1).cos()
                total = total + (weights * x).sum()
        return total

    return loss


def slopes(torch, function, arguments):
    """The gradients of a loss in all floating arguments, by autograd."""
    made = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in arguments]
    wanted = [x for x in made if x.requires_grad]
    value = loss_of(function)(*made)
    return torch.autograd.grad(value, wanted, materialize_grads=True, allow_unused=True) if value.requires_grad else ()


def floating(arguments):
    """Numbers of the arguments that are floating."""
    return tuple(i for i, x in enumerate(arguments) if x.is_floating_point())


@each(HOW)
def test_vmap(library, function, arguments):
    vmap, stacked = importlib.import_module("torch").func.vmap, mapped(library, arguments)
    assert_same(vmap(function)(*stacked), one_by_one(function, stacked))


@each({name: call for name, call in EVERYTHING.items() if name != "create_padding_mask"})
def test_grad(library, function, arguments):
    torch, made = torch_of(library, arguments)
    found = torch.func.grad(loss_of(function), argnums=floating(made))(*made)
    assert_same(found, slopes(torch, function, made))


@each({name: call for name, call in (EXACT | public.CALLS).items() if name != "create_padding_mask"})
def test_jvp(library, function, arguments):
    torch, made = torch_of(library, arguments, "float64")
    at = floating(made)
    directions = tuple(made[i].nan_to_num(neginf=0.0).cos() for i in at)

    def moved(*some):
        return loss_of(function)(*(some[at.index(i)] if i in at else x for i, x in enumerate(made)))

    found = torch.func.jvp(moved, tuple(made[i] for i in at), directions)[1]
    expected = sum((a * b).sum() for a, b in zip(slopes(torch, function, made), directions, strict=True))
    assert_same(found, expected)


@each(EVERYTHING)
def test_inference_mode(library, function, arguments):
    torch, made = torch_of(library, arguments)
    expected = function(*made)
    with torch.inference_mode():
        assert_same(function(*(x.clone() for x in made)), expected)


@each({name: call for name, call in EVERYTHING.items() if name != "create_padding_mask"})
def test_checkpoint(library, function, arguments):
    torch, made = torch_of(library, arguments)
    checkpoint = importlib.import_module("torch.utils.checkpoint").checkpoint
    again = slopes(torch, lambda *a: checkpoint(function, *a, use_reentrant=False), made)
    assert_same(again, slopes(torch, function, made))


@each(EXACT)
def test_autocast_narrows_no_product_of_ours(library, function, arguments):
    """The kernels choose the dtype of their products: float32 for float32 and for narrower input."""
    torch, made = torch_of(library, arguments)
    expected, gradients = function(*made), slopes(torch, function, made)

    def narrow(*arrays):
        with torch.autocast(made[0].device.type, dtype=torch.bfloat16):
            return function(*arrays)

    with torch.autocast(made[0].device.type, dtype=torch.bfloat16):
        assert_same(function(*made), expected)
    assert_same(slopes(torch, narrow, made), gradients)


@each({name: call for name, call in EVERYTHING.items() if name not in {*EXACT, "multi-head params"}})
def test_autocast_keeps_the_dtype_of_a_call(library, function, arguments):
    torch, made = torch_of(library, arguments)
    with torch.autocast(made[0].device.type, dtype=torch.bfloat16):
        found = function(*made)
    for one, other in zip(results(found), results(function(*made)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0.1, atol=0.1)


@each(TILED)
def test_compile(library, function, arguments):
    torch, made = torch_of(library, arguments)
    torch.compiler.reset()
    assert_same(torch.compile(function, fullgraph=True, backend="eager")(*made), function(*made))


@pytest.fixture
def inductor(tmp_path, monkeypatch):
    """torch's own compiler, one process of it, with what it keeps in a place of its own."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("inductor needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = importlib.import_module("torch._inductor.config")
    monkeypatch.setattr(config, "compile_threads", 1)
    importlib.import_module("torch").compiler.reset()
    return {"fullgraph": True, "backend": "inductor"}


def test_inductor(library, inductor):
    """Plainly through the kernel of torch, and by tiles with what it knows nothing of."""
    torch = importlib.import_module("torch")

    def attend(q, k, v):
        plain = ax.flash_attention(q, k, v)
        return plain, ax.flash_attention(
            q, k, v, is_causal=True, softcap=2.0, query_offset=2, impl="tiled", tile=(4, 4)
        )

    made = [library.array(x) for x in QKV]
    assert_same(torch.compile(attend, **inductor)(*made), attend(*made))


@pytest.mark.parametrize("impl", ["dense", "tiled", "fused", "auto"])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"softcap": 2.0}, {"dropout_rate": 0.5, "rng": 1}], ids=str
)
def test_one_graph_serves_all_lengths(library, impl, options):
    """Also where plain calls of other lengths come between."""
    if impl == "fused" and options.keys() - {"is_causal"}:
        pytest.skip("torch's kernel knows nothing of it")
    torch, graphs = importlib.import_module("torch"), []
    torch.compiler.reset()

    def attend(x):
        return ax.flash_attention(x, x, x, impl=impl, **options)

    compiled = torch.compile(
        attend, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=True
    )
    for length in (6, 20, 33):
        x = library.array(normal(2, 4, length, 8))
        assert_same(compiled(x), attend(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_a_graph_for_as_many_tiles_serves_their_lengths(library, options):
    torch, graphs = importlib.import_module("torch"), []
    torch.compiler.reset()

    def slope(x):
        return ax.attention_vjp(x, x, x, impl="tiled", **options)[1](x).key

    compiled = torch.compile(
        slope, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=True
    )
    for length in (200, 220, 250):  # two blocks of rows, each of one tile
        x = library.array(normal(1, length, 4))
        assert_same(compiled(x), slope(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("impl", ["dense", "fused"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_export_with_lengths_left_open(library, impl, options):
    torch = importlib.import_module("torch")

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return ax.flash_attention(q, k, v, impl=impl, **options)

    made = [library.array(x) for x in (normal(2, 4, 6, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 8))]
    length = torch.export.Dim("length", min=2, max=512)
    exported = torch.export.export(Attention(), tuple(made), dynamic_shapes=({2: length},) * 3, strict=True)
    for n in (6, 31):
        arrays = [library.array(normal(*x.shape[:2], n, 8)) for x in made]
        assert_same(exported.module()(*arrays), Attention()(*arrays))


@each(
    {name: HOW[f"{name}, {impl}"] for name, impl in (("mask rules", "tiled"), ("lengths", "fused"), ("vjp", "dense"))}
)
def test_export(library, function, arguments):
    torch, made = torch_of(library, arguments)

    class Attention(torch.nn.Module):
        def forward(self, *arrays):
            return function(*arrays)

    assert_same(torch.export.export(Attention(), tuple(made)).module()(*made), function(*made))


CAPTURED = {
    "score_mod": lambda t: {"score_mod": lambda score, b, h, q_idx, kv_idx: t[h] * score},
    "bias rule": lambda t: {"bias": AlibiBias(t)},
}


@pytest.mark.parametrize("options", CAPTURED.values(), ids=CAPTURED)
def test_what_is_captured_has_gradients_in_linear_memory(library, options):
    """No tile is kept for the gradients: each block of rows is computed once more."""
    torch = importlib.import_module("torch")

    def found(impl, length):
        arrays = [normal(1, 2, length, 4, seed=i) for i in range(3)]
        made = [library.array(x).requires_grad_() for x in (*arrays, np.asarray([0.7, 0.3]))]
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            output = ax.flash_attention(*made[:3], is_causal=True, impl=impl, **options(made[3]))
        return sum(kept), torch.autograd.grad((output**2).sum(), made)

    (kept, tiled), (_, dense) = found("tiled", 300), found("dense", 300)
    assert kept <= 6 * 2 * 300 * 4
    assert_same(tiled, dense)


def test_gradients_of_gradients_of_what_is_captured(library):
    torch = importlib.import_module("torch")
    made = [library.array(x, "float64").requires_grad_() for x in (*QKV, np.asarray([0.7, 0.3, 0.2, 0.1]))]
    for options in CAPTURED.values():

        def attend(q, k, v, t, options=options):
            return ax.flash_attention(q, k, v, impl="tiled", query_offset=0, **SMALL, **options(t))

        assert torch.autograd.gradcheck(attend, made, fast_mode=True)
        assert torch.autograd.gradgradcheck(attend, made, fast_mode=True)
        assert to_numpy(attend(*made)).shape == (2, 4, 5, 8)
