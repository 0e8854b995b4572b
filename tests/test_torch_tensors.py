"""Tensors of torch that are more, or other, than dense arrays in one place."""

import importlib

import pytest

import attention_xp as ax
from attention_xp import linear
from tests._inputs import normal

pytestmark = pytest.mark.backends("torch")

CALLS = {
    "dense": lambda *a: ax.flash_attention(*a, impl="dense"),
    "tiled": lambda *a: ax.flash_attention(*a, impl="tiled"),
    "fused": lambda *a: ax.flash_attention(*a, impl="fused"),
    "tiles": lambda *a: ax.flash_attention(*a, impl="tiled", tile=(2, 3), return_lse=True, softcap=2.0)[1],
    "gradients": lambda *a: ax.attention_vjp(*a)[0],
}
each = pytest.mark.parametrize("function", CALLS.values(), ids=CALLS)


@pytest.fixture
def torch(library):
    """torch itself."""
    library.namespace()
    return importlib.import_module("torch")


@pytest.fixture
def qkv(library):
    """Query, key and value."""
    return [library.array(normal(2, 2, 4, 8, seed=i)) for i in range(3)]


@each
def test_subclasses_come_back(torch, qkv, function):
    """As from torch's own functions: a subclass makes one of the result, a parameter makes none."""
    kind = type("Kind", (torch.Tensor,), {})
    plain = function(*qkv)
    for i in range(3):
        some = [x.as_subclass(kind) if i == j else x for j, x in enumerate(qkv)]
        found = function(*some)
        assert type(found) is (torch.Tensor if function is CALLS["tiles"] and i == 2 else kind)  # no values in a lse
        torch.testing.assert_close(found.as_subclass(torch.Tensor), plain)
    assert type(plain) is type(function(*map(torch.nn.Parameter, qkv))) is torch.Tensor


@each
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_tensors_are_refused(torch, qkv, function):
    """Also where a call of the same shapes is known."""
    rows = [x[0, 0] for x in qkv]
    for layout in (torch.sparse_coo, torch.sparse_csr):
        for i, name in enumerate(("query", "key", "value")):
            function(*rows)
            some = [x.to_sparse(layout=layout) if i == j else x for j, x in enumerate(rows)]
            with pytest.raises(TypeError, match=rf"{name} must be a dense tensor, .* expected {name}.to_dense\(\)"):
                function(*some)
    with pytest.raises(TypeError, match="mask must be a dense tensor"):
        ax.flash_attention(*rows, torch.eye(4, device=rows[0].device).to_sparse())


@each
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused(torch, qkv, function):
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([qkv[0][0, 0], qkv[0][0, 0, :3]], layout=layout)
        with pytest.raises(TypeError, match=r"query must be a dense tensor, .* varlen_attention"):
            function(nested, nested, nested)


@pytest.fixture
def mesh(torch):
    """A mesh of one device, of which this process is the only one."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    pytest.importorskip("torch.distributed.tensor.experimental")
    dist = importlib.import_module("torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


LOCAL = {
    **{name: call for name, call in CALLS.items() if name != "fused"},
    "weights": lambda *a: ax.scaled_dot_product_attention(*a)[1],
    "lengths": lambda *a: ax.flash_attention(*a, key_lengths=3),
    "fewer rows": lambda q, k, v: ax.flash_attention(q[..., :2, :], k, v, is_causal=True, query_offset=0),
    "statistics": lambda q, k, _: ax.attention_statistics(q, k).entropy,
    "linear": linear.linear_attention,
}


def test_context_parallel(torch, mesh, qkv):
    """torch puts another kernel in the place of its own, which sees the keys of all ranks; no other kernel does."""
    context = importlib.import_module("torch.distributed.tensor.experimental").context_parallel
    expected = [call(*qkv) for call in LOCAL.values()]  # which is then known
    with context(mesh, buffers=[x.clone() for x in qkv], buffer_seq_dims=[2, 2, 2]):
        for call in LOCAL.values():
            with pytest.raises(ValueError, match=r"context_parallel .* expected a call that impl='fused' takes"):
                call(*qkv)
        for impl in ("auto", "fused"):
            torch.testing.assert_close(ax.flash_attention(*qkv, impl=impl), ax.flash_attention(*qkv, impl=impl))
    torch.testing.assert_close([call(*qkv) for call in LOCAL.values()], expected)
