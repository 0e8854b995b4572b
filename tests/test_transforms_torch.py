"""What torch makes of a function, on every kernel: differentiated, compiled, exported, narrowed, recomputed."""

import importlib
import shutil
import warnings

import numpy as np
import pytest

import attention_xp as ax
from attention_xp.biases import AlibiBias
from tests import _public_calls as public
from tests._backends import to_numpy
from tests._inputs import normal
from tests._quick import some_rare
from tests._transforms import assert_same, results

pytestmark = [
    pytest.mark.backends("torch"),
    # torch loads its forward-mode rules, and its exporter, with functions of its own that it has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's kernel, mapped
]

QKV = public.QKV
EVERYTHING = public.CALLS | public.FUSED
DIFFERENTIABLE = {name: call for name, call in EVERYTHING.items() if name != "create_padding_mask"}
# What the kernels of this library compute, beside the projections of the user and what torch's kernel does.
EXACT = {name: call for name, call in public.CALLS.items() if not name.startswith("multi-head params")}


def each(calls, is_rare=lambda name: False):
    """Run a test on all of these calls."""
    return pytest.mark.parametrize(("function", "arguments"), some_rare(calls, is_rare))


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


@each(DIFFERENTIABLE)
def test_grad(library, function, arguments):
    torch, made = torch_of(library, arguments)
    found = torch.func.grad(loss_of(function), argnums=floating(made))(*made)
    assert_same(found, slopes(torch, function, made))


@each({name: call for name, call in DIFFERENTIABLE.items() if not name.endswith("fused")})
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


@each(DIFFERENTIABLE)
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
        assert_same(slopes(torch, function, made), gradients)  # as are those of the way back
    assert_same(slopes(torch, narrow, made), gradients)


def test_autocast_narrows_no_derivative_of_derivatives(library):
    torch = importlib.import_module("torch")

    def twice(impl, narrows):
        made = [library.array(x).requires_grad_() for x in QKV]
        with torch.autocast(made[0].device.type, dtype=torch.bfloat16, enabled=narrows):
            output = ax.flash_attention(*made, impl=impl, is_causal=True, query_offset=2, tile=(4, 4))
            first = torch.autograd.grad((output**2).sum(), made, create_graph=True)
            return torch.autograd.grad(sum((slope**2).sum() for slope in first), made)

    for impl in ("dense", "tiled"):
        assert_same(twice(impl, True), twice(impl, False))


MIXED = {
    "attention": lambda q, k, how: ax.scaled_dot_product_attention(q, k, k, impl=how, return_weights=how != "fused")[0],
    "cross": lambda q, k, how: ax.cross_attention(q[0], k[0], 8, return_weights=False, impl=how)[0],
    "packed": lambda q, k, how: ax.varlen_attention(q[0], k[0], k[0], torch_ints(q, 0, 2, 3), torch_ints(q, 0, 1, 3)),
    "gradients": lambda q, k, how: ax.attention_vjp(q, k, k, impl=how)[1](q).key if how != "fused" else k,
    "linear": lambda q, k, how: ax.linear.linear_attention(q, k, k),
}


def torch_ints(like, *numbers):
    """Integers beside a tensor."""
    return like.new_tensor(numbers).int()


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("impl", ["dense", "tiled", "fused"])
def test_autocast_mixes_dtypes(library, function, impl):
    """As torch's own kernel takes them; the result has the dtype of the query, a gradient that of its array."""
    torch = importlib.import_module("torch")
    narrow, wide = (library.array(normal(2, 3, 3, 8, seed=i)) for i in range(2))
    narrow, double = narrow.bfloat16(), wide.double()
    for arrays in ((narrow, wide), (narrow.float(), wide.bfloat16())):
        with torch.autocast(narrow.device.type, dtype=torch.bfloat16):
            found = function(*arrays, impl)
            torch.testing.assert_close(
                found.float(), function(*(a.float() for a in arrays), impl), rtol=0.02, atol=0.02
            )
            with pytest.raises(TypeError, match="expected one dtype"):
                function(arrays[0], double, "dense")
        assert found.dtype in {a.dtype for a in arrays}
        with pytest.raises(TypeError, match="expected one dtype"):  # nor is it taken for known from then on
            function(*arrays, "dense")


@each(public.FUSED)
def test_autocast_keeps_the_dtype_of_a_call(library, function, arguments):
    torch, made = torch_of(library, arguments)
    with torch.autocast(made[0].device.type, dtype=torch.bfloat16):
        found = function(*made)
    for one, other in zip(results(found), results(function(*made)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0.1, atol=0.1)


def test_compiled_gradients_of_one_array_that_is_all(library):
    torch = importlib.import_module("torch")
    torch.compiler.reset()

    def attend(x, y):
        return (
            ax.self_attention(x, 8, return_weights=False, impl="tiled", is_causal=True)[0],
            ax.cross_attention(x, y, 8, return_weights=False, impl="tiled")[0],
        )

    made = [library.array(normal(2, n, 8, seed=n)) for n in (5, 7)]
    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    assert_same(slopes(torch, compiled, made), slopes(torch, attend, made))


BATCHED = {
    "tiled": {"impl": "tiled", "tile": (2, 3)},
    "tiled, masked": {"impl": "tiled", "is_causal": True, "query_offset": 1, "softcap": 2.0},
    "auto": {"impl": "auto"},
}


@pytest.mark.parametrize("options", BATCHED.values(), ids=BATCHED)
def test_batched_gradients(library, options):
    """Autograd batches gradients in a way of its own, which is older than `torch.func.vmap` and knows few operations."""
    torch = importlib.import_module("torch")
    made = [library.array(x, "float64").requires_grad_() for x in (normal(2, 3, 4), normal(2, 4, 4), normal(2, 4, 5))]

    def attend(q, k, v):
        return ax.flash_attention(q, k, v, return_lse=options["impl"] == "tiled", **options)

    again = options["impl"] == "tiled"  # torch's own kernel has no forward mode
    assert torch.autograd.gradcheck(
        attend,
        made,
        fast_mode=True,
        check_batched_grad=True,
        check_forward_ad=again,
        check_batched_forward_grad=again,
    )
    assert torch.autograd.gradgradcheck(attend, made, fast_mode=True, check_batched_grad=True)
    at_once, singly = (
        torch.autograd.functional.jacobian(attend, tuple(made), create_graph=True, vectorize=vectorize)
        for vectorize in (True, False)
    )
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (at_once, singly)), strict=True):
        assert_same(one, other)


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


@each(EVERYTHING, public.is_rare)
def test_export(library, function, arguments):
    torch, made = torch_of(library, arguments)

    class Module(torch.nn.Module):
        def forward(self, *arrays):
            return function(*arrays)

    assert_same(torch.export.export(Module(), tuple(made)).module()(*made), function(*made))


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
            return ax.flash_attention(q, k, v, impl="tiled", tile=(2, 3), query_offset=0, **options(t))

        assert torch.autograd.gradcheck(attend, made, fast_mode=True)
        assert torch.autograd.gradgradcheck(attend, made, fast_mode=True)
        assert to_numpy(attend(*made)).shape == (2, 4, 5, 8)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("impl", ["auto", "dense", "tiled"])
def test_shapes_of_tensors_without_numbers(library, impl):
    torch = importlib.import_module("torch")
    query, key = (torch.empty(2, heads, length, 8, device="meta") for heads, length in ((4, 300), (2, 70)))
    output = ax.flash_attention(query, key, key, is_causal=True, query_offset=0, impl=impl)
    assert (output.shape, output.device.type) == (query.shape, "meta")


@pytest.mark.parametrize("name", ["scale", "softcap"])
def test_a_number_that_differs_from_call_to_call(library, name):
    """From the second value on, torch compiles for any: the number is a symbol."""
    x = library.array(normal(2, 4, 5, 8))
    attend = lambda number: ax.flash_attention(x, x, x, **{name: number})
    compiled = importlib.import_module("torch").compile(attend, fullgraph=True, backend="eager")
    for number in (0.3, 0.5, 0.7):
        np.testing.assert_allclose(to_numpy(compiled(number)), to_numpy(attend(number)), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "bias": True, "sinks": True}], ids=["plain", "options"])
def test_forward_mode_inside_forward_mode(library, options):
    """A rule of our own for forward mode would hide its changes from another one around it."""
    torch, (x, bias, sinks) = torch_of(library, [normal(1, 4, 12, 3), normal(4, 12, 12), normal(4)], "float64")
    options = {name: {"bias": bias, "sinks": sinks}.get(name, given) for name, given in options.items()}

    def second(impl):
        def loss(at):
            moved = {name: a * (1.0 + at) if isinstance(a, torch.Tensor) else a for name, a in options.items()}
            return (ax.flash_attention(x * (1.0 + at), x * (2.0 - at), x, impl=impl, tile=(5, 5), **moved) ** 2).sum()

        at = torch.tensor(0.3, dtype=torch.float64)
        return [again(torch.func.jacfwd(loss))(at) for again in (torch.func.jacfwd, torch.func.jacrev)]

    for found, expected in zip(second("tiled"), second("dense"), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["plain", "causal"])
def test_gradients_of_single_examples(library, options):
    """A gradient inside `vmap`: torch's own kernel has no rule for a batch of batches, and warns of its loop."""
    torch = library.namespace()
    x = library.array(normal(3, 2, 2, 5, 8))
    one = torch.func.grad(lambda a: ax.flash_attention(a, a + 1, a, **options).sin().sum())
    expected = torch.stack([one(a) for a in x])
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # each of them once in a program, else
    try:
        with warnings.catch_warnings(action="error"):
            found = torch.func.vmap(one)(x)
    finally:
        torch.set_warn_always(always)
    torch.testing.assert_close(found, expected)
