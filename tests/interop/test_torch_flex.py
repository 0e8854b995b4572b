"""torch's FlexAttention computed here: functions of single scores and pairs, and block masks."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, create_mask

from attention_xp import flash_attention
from attention_xp.biases import AlibiBias
from attention_xp.interop.torch import flex_attention, rule_from_block_mask
from attention_xp.interop.torch._scalars import score_over_tiles
from attention_xp.masks import CausalMask, WindowMask
from attention_xp.masks._mask import Either
from attention_xp.masks._pattern_rule import PatternMask
from tests.interop._torch_mods import MASK_MODS, SCORE_MODS, B, H, S, captured

pytestmark = [
    pytest.mark.backends("torch"),
    pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _without_compiling(monkeypatch):
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)))


QUERY, KEY, VALUE = normal(B, H, S, 8), normal(B, H, S, 8) + 0.1, normal(B, H, S, 6)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def constant(values):
    return {name: value.detach() for name, value in values.items()}


@pytest.mark.parametrize("name", SCORE_MODS)
def test_score_mods(name):
    score_mod = SCORE_MODS[name](constant(captured()))
    wanted, aux = flex.flex_attention(QUERY, KEY, VALUE, score_mod, return_aux=AuxRequest(lse=True))
    found, lse = flex_attention(QUERY, KEY, VALUE, score_mod, return_lse=True)
    assert_close(found, wanted)
    assert_close(lse, aux.lse)
    mapped = score_over_tiles(score_mod)
    assert_close(flash_attention(QUERY, KEY, VALUE, score_mod=mapped, impl="tiled", tile=(7, 5)), wanted)


def one_by_one(query, key, value, score_mod):
    """Attend with a function of single scores that is called for each of them, as it is written."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    places = [[torch.tensor(i) for i in range(n)] for n in scores.shape]
    changed = [
        score_mod(scores[b, h, q, k], b, h, q, k)
        for b in places[0] for h in places[1] for q in places[2] for k in places[3]
    ]  # fmt: skip
    return torch.softmax(torch.stack(changed).reshape(scores.shape), -1) @ value


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("name", SCORE_MODS)
def test_gradients_also_of_what_was_captured(name, impl):
    both = []
    for attend in ("ours", "theirs"):
        values = captured()
        inputs = [a[:, :, :7].clone().requires_grad_() for a in (QUERY, KEY, VALUE)]
        score_mod = SCORE_MODS[name](values)
        if attend == "theirs":
            output = one_by_one(*inputs, score_mod)
        else:
            output = flash_attention(*inputs, score_mod=score_over_tiles(score_mod), impl=impl, tile=(4, 3))
        leaves = [*inputs, *(v for v in values.values() if v.requires_grad)]
        both.append(torch.autograd.grad(output.sin().sum(), leaves, allow_unused=True))
    for found, wanted in zip(*both, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert_close(found / (1 + wanted.abs().max()), wanted / (1 + wanted.abs().max()))


@pytest.mark.parametrize("block", [(5, 9), 128])
@pytest.mark.parametrize("name", MASK_MODS)
def test_mask_mods(name, block):
    mask_mod = MASK_MODS[name](captured())
    block_mask = create_block_mask(mask_mod, B, H, S, S, device="cpu", BLOCK_SIZE=block)
    wanted, lse = flex.flex_attention(QUERY, KEY, VALUE, block_mask=block_mask, return_lse=True)
    found = flex_attention(QUERY, KEY, VALUE, block_mask=block_mask, return_lse=True)
    assert_close(found[0], wanted)
    assert_close(found[1], lse)
    rule = rule_from_block_mask(block_mask)
    assert_close(flash_attention(QUERY, KEY, VALUE, rule, impl="tiled", tile=(7, 5)), wanted)
    np.testing.assert_array_equal(rule.to_array(S, S), create_mask(mask_mod, B, H, S, S, device="cpu"))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_everything_at_once_with_grouped_heads_and_other_lengths(kv_heads):
    values = constant(captured())
    query, key, value = normal(B, H, 13, 8), normal(1, kv_heads, S, 8), normal(1, kv_heads, S, 6)
    block_mask = create_block_mask(MASK_MODS["padding"](values), B, None, 13, S, device="cpu", BLOCK_SIZE=4)
    arguments = query, key, value, SCORE_MODS["table"](values), block_mask, 0.3, kv_heads != H, True
    for found, wanted in zip(flex_attention(*arguments), flex.flex_attention(*arguments), strict=True):
        assert_close(found, wanted)


def test_empty_rows_and_auxiliary_outputs():
    block_mask = create_block_mask(lambda b, h, q, k: (q > 2) & (k < q), None, None, S, S, device="cpu", BLOCK_SIZE=4)
    wanted, lse = flex.flex_attention(QUERY, KEY, VALUE, block_mask=block_mask, return_lse=True)
    output, aux = flex_attention(
        QUERY, KEY, VALUE, block_mask=block_mask, return_aux=AuxRequest(lse=True, max_scores=True)
    )
    assert not output[:, :, :3].any()
    assert_close(output, wanted)
    assert_close(aux.lse, lse)
    keep = create_mask(block_mask.mask_mod, B, H, S, S, device="cpu")
    assert_close(aux.max_scores, (QUERY @ KEY.mT / math.sqrt(8)).masked_fill(~keep, -math.inf).amax(-1))
    assert flex_attention(QUERY, KEY, VALUE, return_aux=AuxRequest())[1] == (None, None)


def test_tables_alone_without_a_function():
    counts, indices = torch.tensor([[[1, 2, 1]]]), torch.tensor([[[[2, 7, 7], [0, 1, 7], [1, 7, 7]]]])
    full = torch.tensor([[[1, 0, 1]]]), torch.tensor([[[[0, 7, 7], [7, 7, 7], [2, 7, 7]]]])
    make = flex.BlockMask.from_kv_blocks
    layout = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)
    blocks = torch.ones(8, 8, dtype=torch.bool)
    plain = make(counts, indices, BLOCK_SIZE=8, compute_q_blocks=False)
    assert torch.equal(torch.from_numpy(rule_from_block_mask(plain).to_array(S, S)), torch.kron(layout, blocks))
    both = make(counts, indices, *full, BLOCK_SIZE=8, mask_mod=lambda b, h, q, k: k % 2 == 0, compute_q_blocks=False)
    even = torch.kron(layout, blocks) & (torch.arange(S) % 2 == 0)
    named = torch.kron(torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool), blocks)
    assert torch.equal(torch.from_numpy(rule_from_block_mask(both).to_array(S, S)), even | named)


def test_block_masks_serve_other_calls():
    """Without heads, with more batch axes, and with positions that differ from item to item."""
    mask_mod = MASK_MODS["head's window"](captured())
    rule = rule_from_block_mask(create_block_mask(mask_mod, None, H, S, S, device="cpu", BLOCK_SIZE=6))
    keep = create_mask(mask_mod, 1, H, S, S, device="cpu")
    x = normal(3, 2, H, S, 4)
    assert_close(flash_attention(x, x, x, rule), flash_attention(x, x, x, keep))
    rule = rule_from_block_mask(
        create_block_mask(MASK_MODS["window"]({}), None, None, S, S, device="cpu", BLOCK_SIZE=6)
    )
    x = normal(2, S, 4)
    assert_close(flash_attention(x, x, x, rule), flash_attention(x, x, x, window=(5, 0)))
    offsets = torch.tensor([3, 17])
    assert_close(
        flash_attention(x[:, :5], x, x, rule, query_offset=offsets),
        flash_attention(x[:, :5], x, x, window=(5, 0), query_offset=offsets),
    )


def test_tables_skip_what_they_leave_out():
    asked = []

    def mask_mod(b, h, q, k):
        asked.append((b, h, q, k))
        return (q // 8 == k // 8) & (q >= k)

    block_mask = create_block_mask(mask_mod, None, None, S, S, device="cpu", BLOCK_SIZE=8)
    rule = rule_from_block_mask(block_mask)
    asked.clear()
    flash_attention(QUERY, KEY, VALUE, rule, impl="tiled", tile=(8, 8))
    assert asked == []  # what it says of the three partial blocks is stored: one triangle
    assert rule.patterns.shape == (3, 8, 8)
    assert not rule.any_allowed((0, 8), (8, S))


def test_rules_are_the_fast_way():
    values = constant(captured())
    slopes = values["slopes"].abs()
    mask_mod, alibi = MASK_MODS["window"](values), lambda score, b, h, q, k: score - slopes[h] * (q - k).abs()
    block_mask = create_block_mask(mask_mod, None, None, S, S, device="cpu")
    wanted = flex_attention(QUERY, KEY, VALUE, alibi, block_mask)
    window = CausalMask() & WindowMask(5, None)
    assert_close(flex_attention(QUERY, KEY, VALUE, rule=(AlibiBias(slopes), window)), wanted)
    assert_close(flex_attention(QUERY, KEY, VALUE, rule=alibi, block_mask=block_mask), wanted)
    assert_close(flex_attention(QUERY, KEY, VALUE, alibi, rule=window), wanted)
    # What reduces what it has captured is not elementwise.
    reducing = SCORE_MODS["product_of_rows"](values)
    assert not torch.allclose(
        flex_attention(QUERY, KEY, VALUE, rule=reducing), flex_attention(QUERY, KEY, VALUE, reducing), atol=0.1
    )


def test_compiled_without_a_break():
    values = constant(captured())
    score_mod = SCORE_MODS["alibi"](values)
    block_mask = create_block_mask(MASK_MODS["causal"](values), None, None, S, S, device="cpu", BLOCK_SIZE=8)
    compiled = torch.compile(flex_attention, backend="eager", fullgraph=True)
    wanted = flex.flex_attention(QUERY, KEY, VALUE, score_mod, block_mask)
    assert_close(compiled(QUERY, KEY, VALUE, score_mod, block_mask), wanted)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_with_a_look_up_for_each_item(dynamic):
    document = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    x = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    block_mask = create_block_mask(lambda b, h, q, k: document[b, q] == document[b, k], 2, None, 4, 4, device="cpu")
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, backend="eager", fullgraph=True, dynamic=dynamic)
    assert_close(compiled(x, x, x, block_mask=block_mask), flex.flex_attention(x, x, x, block_mask=block_mask))


def test_signature():
    *ours, rule = inspect.signature(flex_attention).parameters.values()
    theirs = inspect.signature(flex.flex_attention).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]
    assert (rule.name, rule.kind) == ("rule", rule.KEYWORD_ONLY)


BLOCKS = create_block_mask(lambda b, h, q, k: q >= k, None, None, S + 1, S, device="cpu")


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"kernel_options": {"BLOCK_M": 32}}, NotImplementedError, "kernel_options"),
        ({"return_lse": True, "return_aux": AuxRequest(lse=True)}, ValueError, "return_aux"),
        ({"block_mask": BLOCKS}, ValueError, r"\(25, 24\)"),
        ({"block_mask": CausalMask()}, TypeError, "block_mask"),
        ({"query": QUERY[0]}, ValueError, "query must have 4 axes"),
        ({"key": KEY[:, :2], "value": VALUE[:, :2]}, ValueError, "enable_gqa=True"),
        ({"query": QUERY[:1]}, ValueError, "batch"),
        ({"score_mod": 3}, TypeError, "score_mod must be callable"),
        ({"score_mod": min, "rule": max}, ValueError, "score_mod and a function"),
        ({"rule": (CausalMask(), WindowMask(1, 1))}, ValueError, "two of a kind"),
        ({"rule": "causal"}, TypeError, "rule must be"),
        ({"value": None}, TypeError, "value must be a tensor"),
    ],
)
def test_errors(changed, error, text):
    with pytest.raises(error, match=text):
        flex_attention(**{"query": QUERY, "key": KEY, "value": VALUE, **changed})


def test_block_masks_are_not_rules_by_themselves():
    x = torch.ones(1, 1, S, 4)
    with pytest.raises(TypeError, match="rule_from_block_mask makes a rule of it"):
        flash_attention(x, x, x, BLOCKS)


def test_sliced_block_masks_raise_what_torch_says():
    sliced = create_block_mask(lambda b, h, q, k: q >= k, B, H, S, S, device="cpu")[:1]
    with pytest.raises(RuntimeError, match="sliced BlockMask"):
        flex_attention(QUERY, KEY, VALUE, block_mask=sliced)


@pytest.mark.parametrize(
    ("mask_mod", "batch", "heads", "kind"),
    [
        (flex.and_masks(MASK_MODS["causal"]({}), MASK_MODS["window"]({})), None, None, PatternMask),
        (MASK_MODS["padding"](captured()), B, H, PatternMask),
        (lambda b, h, q, k: (q + k + h) % 2 == 0, None, None, Either),  # for how many heads, the tables do not say
        (MASK_MODS["head's window"](captured()), None, H, PatternMask),
    ],
)
def test_what_a_function_says_is_stored_where_the_tables_tell_for_whom(mask_mod, batch, heads, kind):
    block_mask = create_block_mask(mask_mod, batch, heads, S, S, device="cpu", BLOCK_SIZE=7)
    rule = rule_from_block_mask(block_mask)
    assert type(rule) is kind
    keep = create_mask(mask_mod, B, H, S, S, device="cpu")
    assert_close(flash_attention(QUERY, KEY, VALUE, rule), flash_attention(QUERY, KEY, VALUE, keep))


def test_block_masks_inside_vmap():
    documents = torch.stack([torch.arange(S) // 5, torch.arange(S) // 9])
    x = normal(2, 1, 1, S, 4)

    def attend(x, documents):
        block_mask = flex.BlockMask.from_kv_blocks(
            torch.tensor([[[3] * 3]]),
            torch.arange(3).expand(1, 1, 3, 3),
            BLOCK_SIZE=8,
            mask_mod=lambda b, h, q, k: documents[q] == documents[k],
        )
        return flex_attention(x, x, x, block_mask=block_mask)

    wanted = [flash_attention(a, a, a, d[:, None] == d) for a, d in zip(x, documents, strict=True)]
    assert_close(torch.vmap(attend)(x, documents), torch.stack(wanted))


@pytest.mark.parametrize(
    "dtypes", [["float32"] * 3, ["float32", "bfloat16", "float32"], ["float16"] * 3, ["float64"] * 3]
)
def test_autocast_gives_its_dtype(dtypes):
    given = [a.to(getattr(torch, dtype)) for a, dtype in zip((QUERY, KEY, VALUE), dtypes, strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found = (f(*given) for f in (flex.flex_attention, flex_attention))
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_a_score_mod_without_keys_gives_zeros():
    output = flex_attention(QUERY, KEY[:, :, :0], VALUE[:, :, :0], lambda score, b, h, q, k: 2 * score)
    assert output.shape == (B, H, S, 6)
    assert not output.any()
