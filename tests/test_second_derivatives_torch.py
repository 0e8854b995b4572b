"""Derivatives of derivatives through torch's own kernel, which has the first alone."""

import importlib

import numpy as np
import pytest

from attention_xp import flash_attention, self_attention
from attention_xp.biases import AlibiBias
from tests._inputs import inputs, normal
from tests._transforms import assert_same

pytestmark = [
    pytest.mark.backends("torch"),
    # torch loads its forward-mode rules with functions of its own that it has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's kernel, mapped
]

QKV = inputs((2, 4, 5, 4), (2, 2, 7, 4))
SQUARE = inputs((2, 4, 6, 4))
KEEP = normal(2, 1, 5, 7) > -0.5
KEEP[0, 0, 2] = False
CALLS = {
    "plain": (QKV, {}),
    "square": (SQUARE, {}),
    "causal": (SQUARE, {"is_causal": True}),
    "causal, hidden keys": (QKV, {"is_causal": True, "query_offset": 0}),
    "scale": (QKV, {"scale": 0.7}),
    "boolean mask that empties a row": (QKV, {"mask": KEEP}),
    "floating mask": (QKV, {"mask": np.where(KEEP, 0.5, -np.inf)}),
    "lengths": (QKV, {"key_lengths": np.asarray([0, 4]), "query_lengths": np.asarray([3, 5])}),
    "no heads": (inputs((5, 4), (7, 4)), {}),
    "broadcast batch": (inputs((2, 1, 2, 5, 4), (1, 3, 2, 7, 4)), {}),
}
each = pytest.mark.parametrize(("arrays", "options"), CALLS.values(), ids=CALLS)
guest = pytest.mark.parametrize("impl", ["auto", "fused"])


@pytest.fixture
def torch(library):
    """torch itself."""
    library.namespace()
    return importlib.import_module("torch")


def on(library, arrays):
    """Arrays that want gradients."""
    return tuple(library.array(x, "float64").requires_grad_() for x in arrays)


def attention(library, impl="auto", **options):
    """A call as a function of query, key and value."""
    given = {n: library.array(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    return lambda *a: flash_attention(*a, impl=impl, **given)


@guest
@each
def test_gradients_of_gradients(library, torch, arrays, options, impl):
    attend, made = attention(library, impl, **options), on(library, arrays)
    assert torch.autograd.gradgradcheck(attend, made, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, made, fast_mode=True, check_batched_grad=True)


@pytest.mark.parametrize("options", [{"bias": normal(4, 5, 7)}, {"mask": np.where(KEEP, normal(5, 7), -10.0)}])
def test_gradients_of_gradients_of_what_is_added(library, torch, options):
    ((name, array),) = options.items()
    made = on(library, (*QKV, array))
    assert torch.autograd.gradgradcheck(lambda q, k, v, a: flash_attention(q, k, v, **{name: a}), made, fast_mode=True)


@pytest.mark.parametrize("options", [{"sinks": normal(4)}, {"softcap": 1.0}, {"return_lse": True}])
def test_what_torch_does_not_know(library, torch, options):
    given = {n: library.array(x, "float64") if isinstance(x, np.ndarray) else x for n, x in options.items()}
    assert torch.autograd.gradgradcheck(lambda *a: flash_attention(*a, **given), on(library, QKV), fast_mode=True)


def test_of_some_arrays_alone_and_of_one_that_is_all(library, torch):
    q, k, v = on(library, QKV)
    assert torch.autograd.gradgradcheck(lambda q, v: flash_attention(q, k.detach(), v), (q, v), fast_mode=True)

    def layers(x):
        for _ in range(2):
            x = self_attention(x, 4, return_weights=False, is_causal=True)[0]
        return x

    assert torch.autograd.gradgradcheck(layers, on(library, (normal(2, 5, 4),)), fast_mode=True)


def test_third_derivatives(library, torch):
    def third(impl):
        (x,) = on(library, (normal(2, 5, 4),))
        value = flash_attention(x, x, x, impl=impl).sin().sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            value = (slope**2).sum()
        return slope

    assert_same(third("auto"), third("dense"))


def test_one_graph_serves_plain_gradients_and_those_to_be_followed(library, torch):
    made = on(library, QKV)
    output = flash_attention(*made)
    assert output.grad_fn.name().startswith("ScaledDotProduct")
    before = torch.autograd.grad(output.sum(), made, retain_graph=True)
    followed = torch.autograd.grad(output.sum(), made, create_graph=True)
    assert_same(followed, before)
    for one, other in zip(torch.autograd.grad(output.sum(), made), before, strict=True):
        assert torch.equal(one, other)


def test_autocast(library, torch):
    """The kernel is given narrow arrays, and those that are differentiated stay as they are."""
    made = tuple(x.detach().float().requires_grad_() for x in on(library, QKV))

    def slopes(impl):
        with torch.autocast(made[0].device.type, dtype=torch.bfloat16):
            value = (flash_attention(*made, impl=impl) ** 2).sum()
            first = torch.autograd.grad(value, made, create_graph=True)
            return torch.autograd.grad(sum((x**2).sum() for x in first), made)

    for found, expected in zip(slopes("fused"), slopes("dense"), strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_kernel_on_wider_heads(library, torch):
    """On a GPU torch widens the heads, and cuts the output."""
    from attention_xp._engine.kernels.fused._torch_again import follow_gradients  # noqa: PLC0415  # imports torch

    def attend(*arrays):
        wider = (torch.nn.functional.pad(x, (0, 3)) for x in arrays)
        output = torch.nn.functional.scaled_dot_product_attention(*wider)[..., :4]
        follow_gradients(output)
        return output

    assert torch.autograd.gradgradcheck(attend, on(library, SQUARE), fast_mode=True)


def test_a_kernel_that_has_the_gradient_of_a_bias(library, torch, monkeypatch):
    """As some have on a GPU; what such a node keeps is told by a stand-in."""
    from attention_xp._engine.kernels.fused import _torch_again  # noqa: PLC0415  # imports torch

    q, k, v, bias = on(library, (*SQUARE, normal(1, 4, 6, 6)))
    kept = {"query": q, "key": k, "value": v, "attn_bias": bias, "is_causal": False, "scale": 0.3}
    node = type("Node", (), {f"_saved_{name}": x for name, x in kept.items()})
    monkeypatch.setattr(torch._C, "_current_autograd_node", node)
    output = flash_attention(q, k, v, bias=bias, scale=0.3, impl="dense")
    expected = torch.autograd.grad(output.sin().sum(), (q, k, v, bias), retain_graph=True)
    assert_same(_torch_again._followed(expected, (output.cos(),)), expected)
    partly = _torch_again._followed((None, *expected[1:3], None), (output.cos(),))
    assert partly[0] is partly[3] is None
    assert_same(partly[1:3], expected[1:3])


def test_torch_func_takes_gradients_of_gradients(library, torch):
    q, k, v = on(library, SQUARE)
    func = torch.func

    def loss(q, impl):
        return flash_attention(q, k.detach(), v.detach(), is_causal=True, impl=impl).sin().sum()

    def twice(impl):
        return func.grad(lambda q: (func.grad(loss)(q, impl) ** 2).sum())(q.detach())

    def around(impl):
        return torch.autograd.grad((func.grad(loss)(q, impl) ** 2).sum(), q)[0]

    assert_same(twice("auto"), twice("dense"))
    assert_same(around("auto"), around("dense"))
    with pytest.raises(ValueError, match=r"fused.*derivatives of derivatives inside torch.func.*'dense' and.*'tiled'"):
        twice("fused")


def test_torch_func_takes_plain_gradients_through_the_kernel(library, torch):
    q, k, v = (x.detach() for x in on(library, SQUARE))
    names = []

    def loss(q, impl):
        output = flash_attention(q, k, v, impl=impl)
        names.append(output.grad_fn.name())
        return output.sum()

    assert_same(torch.func.grad(loss)(q, "auto"), torch.func.grad(loss)(q, "dense"))
    assert names[0].startswith("ScaledDotProduct")
    with torch.no_grad():
        torch.func.grad(loss)(q.requires_grad_(), "auto")  # nobody follows
    assert names[-1].startswith("ScaledDotProduct")
    slopes = library.array(normal(4), "float64")
    assert torch.func.grad(lambda q: flash_attention(q, k, v, bias=AlibiBias(slopes)).sum())(q).shape == q.shape


def test_hessian(library, torch):
    q, k, v = (x.detach() for x in on(library, inputs((1, 2, 3, 4))))

    def loss(q, impl):
        return flash_attention(q, k, v, is_causal=True, impl=impl).sin().sum()

    expected = torch.func.hessian(loss)(q, "dense")
    assert_same(torch.func.hessian(loss)(q, "auto"), expected)
    assert_same(torch.func.jacrev(torch.func.jacrev(loss))(q, "auto"), expected)
    assert_same(torch.autograd.functional.hessian(lambda q: loss(q, "auto"), q), expected)


def test_the_kernel_has_no_forward_mode(library, torch):
    q, k, v = (x.detach() for x in on(library, SQUARE))
    with pytest.raises(NotImplementedError, match=r"no forward mode; impl='dense' and impl='tiled' have"):
        torch.func.jvp(lambda q: flash_attention(q, k, v, impl="fused"), (q,), (q,))
    directions = [
        torch.func.jvp(lambda q, i=i: flash_attention(q, k, v, impl=i), (q,), (q,)) for i in ("auto", "dense")
    ]
    assert_same(*directions)


def test_inside_a_checkpoint(library, torch):
    """What a kernel keeps is unpacked there once alone."""
    checkpoint, made = importlib.import_module("torch.utils.checkpoint").checkpoint, on(library, QKV)

    def slopes(impl):
        output = checkpoint(attention(library, impl), *made, use_reentrant=False)
        first = torch.autograd.grad(output.sin().sum(), made, create_graph=True)
        return torch.autograd.grad(sum((x**2).sum() for x in first), made)

    with pytest.raises(RuntimeError, match=r"inside a checkpoint.*impl='dense' and impl='tiled' have"):
        slopes("auto")
    assert_same(slopes("tiled"), slopes("dense"))
