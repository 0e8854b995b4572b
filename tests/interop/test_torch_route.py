"""Whole programs of torch, routed here."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as kept
from torch.utils.checkpoint import CheckpointError, checkpoint

from attention_xp.interop.torch import route

pytestmark = [
    pytest.mark.backends("torch"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

OWN = functional.scaled_dot_product_attention
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
PADDING = torch.arange(5) >= torch.tensor([[5], [3]])
SMALL = {"d_model": 16, "nhead": 4, "dim_feedforward": 32, "dropout": 0.0, "batch_first": True}


@pytest.fixture(autouse=True)
def _nothing_remains():
    yield
    assert functional.scaled_dot_product_attention is OWN
    assert not torch.overrides.has_torch_function((X,))  # which a mode that is on answers with True


def self_attention(module):
    return module(X, X, X, need_weights=False)[0]


MODULES = {
    "MultiheadAttention": (1, lambda: nn.MultiheadAttention(16, 4, batch_first=True), self_attention),
    "padded": (
        1,
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
        lambda m: m(X, X, X, need_weights=False, key_padding_mask=PADDING)[0],
    ),
    "Encoder": (2, lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**SMALL), 2), lambda m: m(X)),
    "padded Encoder": (
        2,
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**SMALL), 2),
        lambda m: m(X, src_key_padding_mask=PADDING).masked_fill(PADDING[..., None], 0.0),
    ),
    "causal Encoder": (
        2,
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**SMALL), 2),
        lambda m: m(X, mask=nn.Transformer.generate_square_subsequent_mask(5), is_causal=True),
    ),
    "Transformer": (
        3,
        lambda: nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **SMALL),
        lambda m: m(X, X[:, :3]),
    ),
    "with weights": (0, lambda: nn.MultiheadAttention(16, 4, batch_first=True), lambda m: m(X, X, X)[0]),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("trains", [True, False])
def test_modules_come_here(name, trains):
    torch.manual_seed(0)
    calls, make, call = MODULES[name]
    module = make().train(trains)
    with torch.set_grad_enabled(trains):
        wanted = call(module)
        with route() as routed:
            found = call(module)
    assert routed.calls == calls
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    if trains:
        parameters = [p for p in module.parameters() if p.requires_grad]
        both = [torch.autograd.grad(x.square().sum(), parameters, allow_unused=True) for x in (found, wanted)]
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["looked up", "kept"])
def test_every_way_to_call(name):
    with route() as routed:
        found = (functional.scaled_dot_product_attention if name == "looked up" else kept)(X, X, X, is_causal=True)
    assert routed.calls == 1
    torch.testing.assert_close(found, OWN(X, X, X, is_causal=True))


def test_nested_and_after_an_exception():
    counts = []

    def interrupted():
        with route() as inner:
            counts.append(inner)
            kept(X, X, X)
            raise KeyError

    with route() as outer:
        with pytest.raises(KeyError):
            interrupted()
        assert functional.scaled_dot_product_attention is not OWN
        kept(X, X, X)
    assert (outer.calls, counts[0].calls) == (2, 1)


def test_decorator():
    seen = []

    @route()
    def program():
        seen.append(functional.scaled_dot_product_attention is not OWN)
        return functional.scaled_dot_product_attention(X, X, X)

    program()
    program()
    assert seen == [True, True]


def test_what_was_kept_inside_calls_torch_outside():
    with route() as routed:
        inside = functional.scaled_dot_product_attention
    torch.testing.assert_close(inside(X, X, X), OWN(X, X, X), rtol=0, atol=0)
    assert routed.calls == 0


def test_what_another_has_replaced_comes_back(monkeypatch):
    def other(*args, **kwargs):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", other)
        with route() as routed:
            functional.scaled_dot_product_attention(X, X, X)
        assert functional.scaled_dot_product_attention is other
    assert routed.calls == 1


def test_routes_of_threads_that_end_in_any_order():
    first, second = threading.Event(), threading.Event()

    def early():
        with route() as routed:
            kept(X, X, X)
            first.set()
            assert second.wait(10)
        return routed.calls

    def late():
        assert first.wait(10)
        with route():
            second.set()
            ends.result(10)
            still = functional.scaled_dot_product_attention is not OWN
            kept(X, X, X)
        return still

    with ThreadPoolExecutor(2) as pool:
        ends = pool.submit(early)
        assert pool.submit(late).result(10)
    assert ends.result() == 1


def attended(x):
    return functional.scaled_dot_product_attention(x, x, x).square().sum()


def test_checkpoints_recompute_inside_alone():
    x = X.clone().requires_grad_()
    with route() as routed:
        losses = [checkpoint(attended, x, use_reentrant=False) for _ in range(2)]
        losses[0].backward()
    assert routed.calls == 3
    torch.testing.assert_close(x.grad, torch.autograd.grad(attended(x), x)[0])
    with pytest.raises(CheckpointError):
        losses[1].backward()


def test_compiled_inside_and_outside():
    compiled = torch.compile(attended, backend="eager", fullgraph=True)
    with route():
        inside = compiled(X)
    torch.testing.assert_close(inside, compiled(X))


def test_what_torch_keeps_of_its_own_functions_is_made_before_one_is_replaced():
    """Dynamo asks there whether a function that a program has kept may be seen by a mode, or by a `CausalBias`."""
    torch.overrides._get_overridable_functions.cache_clear()
    with route():
        assert any(kept in known for known in torch.overrides.get_overridable_functions().values())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripts_made_inside_call_what_torch_has():
    layer = nn.TransformerEncoderLayer(**SMALL).eval()
    wanted = layer(X)
    with route() as routed:
        found = torch.jit.script(layer)(X)
    assert routed.calls == 0
    torch.testing.assert_close(found, wanted)


def test_compiled_modules_leave_their_fast_path():
    """Their own kernel would show in the rows kept what is padding: here it is excluded, NaN or not."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**SMALL), 1).eval()
    compiled, x = torch.compile(encoder, backend="eager"), X.clone()
    x[PADDING] = torch.nan
    with torch.no_grad(), route():
        assert not torch.backends.mha.get_fastpath_enabled()
        assert compiled(x, src_key_padding_mask=PADDING)[~PADDING].isfinite().all()
    assert torch.backends.mha.get_fastpath_enabled()


def test_routes_of_one_thread_that_end_in_any_order():
    """As those of tasks that take turns."""
    first, second = route(), route()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    with route() as routed:
        kept(X[None], X[None], X[None])
    assert routed.calls == 1


def test_what_somebody_puts_there_inside_stays_and_the_fast_path_comes_back():
    def theirs(*args, **kwargs):
        return OWN(*args, **kwargs)

    try:
        with route():
            functional.scaled_dot_product_attention = theirs
        assert functional.scaled_dot_product_attention is theirs
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        functional.scaled_dot_product_attention = OWN
