"""torch's functions computed here, against torch itself."""

import importlib
import inspect
import math
import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.attention.varlen import AuxRequest, varlen_attn as their_varlen_attn

from attention_xp import flash_attention, multi_head_attention
from attention_xp.interop.torch import multi_head_params, scaled_dot_product_attention, varlen_attn
from attention_xp.masks import CausalMask

pytestmark = pytest.mark.backends("torch")

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def normal(*shape, dtype=torch.float32, needs_grad=False):
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(needs_grad)


def assert_close(found, expected):
    close = CLOSE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


def assert_alike(arrays, mask=None, **options):
    """Compare output and gradients with torch's; what torch takes on one path only, mask and causal order, as one mask."""
    theirs, expected = dict(options), mask
    if mask is not None and options.get("is_causal"):
        keep = torch.ones(arrays[0].shape[-2], arrays[1].shape[-2], dtype=torch.bool).tril()
        expected = mask & keep if mask.dtype == torch.bool else mask.masked_fill(~keep, -math.inf)
        theirs["is_causal"] = False
    wanted = F.scaled_dot_product_attention(*arrays, expected, **theirs)
    found = scaled_dot_product_attention(*arrays, mask, **options)
    assert_close(found, wanted)
    inputs = [a for a in (*arrays, mask) if a is not None and a.requires_grad]
    if inputs:
        weights = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).reshape(wanted.shape)
        pairs = [torch.autograd.grad(x, inputs, weights, materialize_grads=True) for x in (found, wanted)]
        for ours, own in zip(*pairs, strict=True):
            size = 1 + (own.abs().max() if own.numel() else 0)
            assert_close(ours / size, own / size)


def broadcast(draw, shape):
    """Return a shape that broadcasts to another."""
    lengths = [n if draw.random() < 0.7 else 1 for n in shape]
    return lengths[draw.randrange(len(lengths) - 1) :]


@pytest.mark.parametrize("seed", range(150))
def test_random_calls(seed):
    draw, _ = random.Random(seed), torch.manual_seed(seed)
    dtype = draw.choice([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
    Sq, Sk, D, Dv, H = (draw.randint(1, 8) for _ in range(5))
    lead, grouped = [draw.randint(1, 3) for _ in range(draw.randint(0, 2))], draw.random() < 0.4
    heads = [H, *(draw.choice([n for n in range(1, H + 1) if H % n == 0] if grouped else [1, H]) for _ in range(2))]
    arrays = [
        normal(*(n if draw.random() < 0.8 else 1 for n in lead), h, S, width, dtype=dtype, needs_grad=True)
        for h, S, width in zip(heads, (Sq, Sk, Sk), (D, D, Dv), strict=True)
    ]
    pairs = (*torch.broadcast_shapes(*(a.shape[:-3] for a in arrays[:2])), H, Sq, Sk)
    kind = draw.choice(["none", "bool", "float"])
    mask = None
    if kind == "bool":
        mask = torch.rand(broadcast(draw, pairs)) < 0.7
    elif kind == "float":
        shape = broadcast(draw, pairs)
        mask = normal(*shape, dtype=dtype).masked_fill(torch.rand(shape) < 0.2, -math.inf).requires_grad_()
    scale = draw.choice([None, 0.5, 2])
    assert_alike(arrays, mask, is_causal=draw.random() < 0.4, scale=scale, enable_gqa=grouped)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        ([(4, 5, 8), (2, 6, 8), (2, 6, 8)], {"enable_gqa": True}),
        ([(2, 12, 5, 8), (2, 4, 6, 8), (2, 6, 6, 8)], {"enable_gqa": True}),
        ([(2, 12, 5, 8), (2, 4, 6, 8), (2, 3, 6, 3)], {"enable_gqa": True, "is_causal": True}),
        ([(2, 1, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8)], {}),
        ([(2, 1, 5, 8), (2, 1, 6, 8), (2, 4, 6, 8)], {}),
        ([(2, 4, 5, 8), (2, 4, 6, 8), (1, 1, 6, 3)], {}),
        ([(2, 4, 5, 8), (4, 6, 8), (6, 8)], {}),
        ([(5, 8), (3, 6, 8), (3, 6, 8)], {}),
        ([(2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8)], {"dropout_p": 1.0}),
        ([(2, 4, 5, 8), (2, 4, 0, 8), (2, 4, 0, 3)], {}),
        ([(2, 4, 7, 8), (2, 4, 3, 8), (2, 4, 3, 8)], {"is_causal": True}),
    ],
    ids=str,
)
def test_liberties(shapes, options):
    torch.manual_seed(0)
    assert_alike([normal(*shape, needs_grad=True) for shape in shapes], **options)


def test_mask_and_causal_together_as_on_the_one_path_of_torch_that_takes_both():
    torch.manual_seed(0)
    x, mask = normal(2, 4, 5, 8), torch.rand(5, 5) < 0.6
    wanted = F.scaled_dot_product_attention(x, x, x, mask, is_causal=True)
    assert_close(scaled_dot_product_attention(x, x, x, mask, is_causal=True), wanted)


@pytest.mark.parametrize("bias", [causal_lower_right, causal_upper_left])
def test_causal_bias(bias):
    query, key = normal(2, 4, 3, 8), normal(2, 4, 7, 8)
    wanted = F.scaled_dot_product_attention(query, key, key, bias(3, 7))
    assert_close(scaled_dot_product_attention(query, key, key, bias(3, 7)), wanted)
    with pytest.raises(ValueError, match="4 queries and 7 keys"):
        scaled_dot_product_attention(query, key, key, bias(4, 7))


def test_rows_that_attend_nothing_are_zero_as_in_torch():
    x, nobody = normal(2, 4, 5, 8), torch.zeros(5, 5, dtype=torch.bool)
    assert not scaled_dot_product_attention(x, x, x, nobody).any()
    assert not F.scaled_dot_product_attention(x, x, x, nobody).any()


def test_autocast_gives_its_dtype():
    x = normal(2, 4, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found = (f(x, x, x) for f in (F.scaled_dot_product_attention, scaled_dot_product_attention))
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert_close(found, wanted)


@pytest.mark.parametrize("name", ["query", "attn_mask"])
def test_autocast_makes_no_floats_of_integers(name):
    x = normal(2, 4, 5, 8)
    given = dict.fromkeys(("query", "key", "value"), x) | {name: torch.ones(2, 4, 5, 8 if name == "query" else 5).int()}
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=name):
        scaled_dot_product_attention(**given)


def test_a_flag_of_several_numbers_is_refused():
    x = normal(2, 4, 5, 8)
    with pytest.raises(TypeError, match="is_causal must be a bool"):
        scaled_dot_product_attention(x, x[:, :, 1:], x[:, :, 1:], is_causal=torch.tensor([True, False]))


def test_shapes_of_tensors_without_numbers():
    x = torch.empty(2, 4, 5, 8, device="meta")
    output = scaled_dot_product_attention(x, x, x, is_causal=True)
    assert (output.shape, output.device) == (x.shape, x.device)


def test_dropout_is_that_of_the_global_generator_or_of_a_seed():
    x = normal(1, 2, 64, 8)
    calls = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        calls.append(scaled_dot_product_attention(x, x, torch.ones(1, 2, 64, 1), dropout_p=0.25))
    assert torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[0], calls[2])
    assert abs(float(calls[0].mean()) - 1.0) < 0.1
    seeded = [scaled_dot_product_attention(x, x, x, dropout_p=0.5, rng=3) for _ in range(2)]
    assert torch.equal(*seeded)


def test_compiled_without_a_break():
    x = normal(2, 4, 5, 8)
    compiled = torch.compile(scaled_dot_product_attention, backend="eager", fullgraph=True)
    wanted = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert_close(compiled(x, x, x, is_causal=True), wanted)


def test_a_rule_that_is_first_made_where_torch_compiles_is_known_to_jax_later():
    jax = pytest.importorskip("jax")

    class Later(CausalMask):
        """A rule of which nobody has made an instance."""

    x = normal(2, 4, 5, 8)
    compiled = torch.compile(lambda x: flash_attention(x, x, x, Later()), backend="eager", fullgraph=True)
    assert_close(compiled(x), flash_attention(x, x, x, is_causal=True))
    assert jax.tree.leaves(Later()) == []


X = torch.zeros(2, 4, 5, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1.0], X, X), TypeError, "query must be a tensor"),
        ((X[0, 0, 0], X, X), ValueError, "query must have 2 axes or more"),
        ((X, X[:, :2], X[:, :2]), ValueError, "enable_gqa=True"),
        ((X, X, X, None, 1.5), ValueError, "0 <= dropout_p <= 1"),
        ((X, X, X, None, 0.0, False, None, True, X), TypeError, "positional"),
        ((X, X, X, torch.ones(5, 5, dtype=torch.int64)), TypeError, "attn_mask must be boolean or floating"),
        ((X, X, X, torch.ones(4, 4) > 0), ValueError, "mask"),
        ((X, X[:, :, :3], X), ValueError, "value"),
        ((X, X[..., :3], X), ValueError, "width"),
        ((X, X[:, :3], X[:, :3], None, 0.0, False, None, True), ValueError, "multiple"),
        ((X, X, X, causal_upper_left(5, 5), 0.0, True), ValueError, "is_causal"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        scaled_dot_product_attention(*arguments)


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([X[0], X[1, :, :3]], layout=torch.jagged)
    with pytest.raises(NotImplementedError, match="query is nested"):
        scaled_dot_product_attention(nested, nested, nested)


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_signatures():
    assert parameters(varlen_attn) == parameters(their_varlen_attn)
    *ours, rng = inspect.signature(scaled_dot_product_attention).parameters.values()
    head = F.scaled_dot_product_attention.__doc__.partition(")")[0].partition("(")[2]
    assert [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in ours] == [
        part.strip() for part in head.split(",")
    ]
    assert (rng.name, rng.kind) == ("rng", rng.KEYWORD_ONLY)


# torch's varlen_attn runs on CUDA alone: its sequences one by one, aligned at their ends, are the judge.


def one_by_one(query, key, value, cu_q, cu_k, used, window, scale=None):
    outputs, lses = [], []
    for i, n in enumerate(used):
        q = query[cu_q[i] : cu_q[i + 1]].transpose(0, 1)
        k, v = (
            a[cu_k[i] : cu_k[i] + n].transpose(0, 1).repeat_interleave(len(q) // a.shape[1], 0) for a in (key, value)
        )
        distance = torch.arange(n) - torch.arange(n - q.shape[1], n)[:, None]
        left, right = (math.inf if w == -1 else w for w in window)
        keep = (distance >= -left) & (distance <= right)
        outputs.append(F.scaled_dot_product_attention(q, k, v, keep, scale=scale).transpose(0, 1))
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        lses.append(scores.masked_fill(~keep, -math.inf).logsumexp(-1))
    return torch.cat(outputs), torch.cat(lses, 1)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (3, 0), (2, 1), (0, -1)])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("is_used", [False, True])
def test_varlen_attn(window, paged, is_used):
    torch.manual_seed(0)
    cu_q, cu_k = torch.tensor([0, 3, 3, 9], dtype=torch.int32), torch.tensor([0, 5, 7, 15], dtype=torch.int32)
    query, key, value = normal(9, 4, 8), normal(15, 2, 8), normal(15, 2, 6)
    used = [4, 1, 7] if is_used or paged else [5, 2, 8]
    options = {"seqused_k": torch.tensor(used, dtype=torch.int32)} if is_used or paged else {}
    wanted, lse = one_by_one(query, key, value, cu_q, cu_k, used, window)
    if paged:
        pages = torch.tensor([[3, 5, -1], [0, 99, 99], [4, 1, 2]])
        pools = []
        for a in (key, value):
            pool = torch.full((6, 3, 2, a.shape[-1]), math.nan)
            for table, start, n in zip(pages, cu_k, used, strict=False):
                for slot in range(n):
                    pool[table[slot // 3], slot % 3] = a[start + slot]
            pools.append(pool)
        key, value, cu_k, options["block_table"] = *pools, None, pages
    found = varlen_attn(
        query,
        key,
        value,
        cu_q,
        cu_k,
        6,
        8,
        window_size=window,
        enable_gqa=True,
        return_aux=AuxRequest(lse=True),
        **options,
    )
    assert_close(found[0], wanted)
    assert_close(found[1], lse)
    assert_close(
        varlen_attn(query, key, value, cu_q, cu_k, 6, 8, window_size=window, enable_gqa=True, **options), wanted
    )


T = torch.zeros(6, 2, 4)
BOUNDS = torch.tensor([0, 2, 6])


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"num_splits": 2}, NotImplementedError, "num_splits"),
        ({"cu_seq_k": None}, ValueError, "cu_seq_k"),
        ({"key": T[:, :1], "value": T[:, :1]}, ValueError, "enable_gqa=True"),
        ({"window_size": (-2, 0)}, ValueError, "window_size"),
        ({"block_table": torch.zeros(2, 2, dtype=torch.int32)}, ValueError, "seqused_k"),
        ({"max_q": 2.5}, TypeError, "max_q"),
    ],
)
def test_errors_of_varlen_attn(changed, error, text):
    given = {"query": T, "key": T, "value": T, "cu_seq_q": BOUNDS, "cu_seq_k": BOUNDS, "max_q": 4, "max_k": 4}
    with pytest.raises(error, match=text):
        varlen_attn(**{**given, **changed})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("widths", [{}, {"kdim": 12, "vdim": 20}])
def test_multi_head_params(bias, widths):
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(16, 4, bias=bias, batch_first=True, **widths)
    if bias:
        torch.nn.init.normal_(module.in_proj_bias)
        torch.nn.init.normal_(module.out_proj.bias)
    query, key, value = normal(2, 5, 16), normal(2, 6, widths.get("kdim", 16)), normal(2, 6, widths.get("vdim", 16))
    is_padding = torch.arange(6) >= torch.tensor([[6], [4]])
    wanted = module(query, key, value, key_padding_mask=is_padding, average_attn_weights=False)
    expected = torch.autograd.grad(wanted[0].sin().sum(), list(module.parameters()))
    found = multi_head_attention(
        query, key, value, 4, 16, ~is_padding[:, None, None, :], params=multi_head_params(module)
    )
    gradients = torch.autograd.grad(found[0].sin().sum(), list(module.parameters()))
    for one, other in zip((*found, *gradients), (*wanted, *expected), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("name", ["add_bias_kv", "add_zero_attn"])
def test_what_has_no_place_in_params(name):
    with pytest.raises(NotImplementedError, match=name):
        multi_head_params(torch.nn.MultiheadAttention(8, 2, **{name: True}))
    with pytest.raises(TypeError, match="MultiheadAttention"):
        multi_head_params(torch.nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_a_module_with_projections_elsewhere_is_refused():
    quantizable = importlib.import_module("torch.ao.nn.quantizable")
    with pytest.raises(NotImplementedError, match="linear_Q"):
        multi_head_params(quantizable.MultiheadAttention(8, 2))
