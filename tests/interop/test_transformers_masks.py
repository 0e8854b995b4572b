"""Mask functions of transformers as rules, the mask that carries them, and what a layer hands to attention."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from transformers import masking_utils as mu
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from attention_xp.interop.transformers import attention_forward, attention_mask, register, rule_of
from attention_xp.interop.transformers._carried_mask import CarriedMask
from attention_xp.masks import CausalMask, FunctionMask, SegmentMask, WindowMask
from tests.interop._models import inputs_of, model_of

register()
SIZE = 12
GENERATOR = np.random.default_rng(7)


def ints(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(GENERATOR.integers(low, high, shape))


def a_packing(batch: int = 2) -> torch.Tensor:
    """Return positions of packed sequences."""
    rows = [torch.cat([torch.arange(4, 7), torch.arange(SIZE - 3)]), torch.cat([torch.arange(n) for n in (1, 6, 5)])]
    return torch.stack(rows[:batch])


def packed(inner: Callable[..., Any], positions: torch.Tensor) -> Callable[..., Any]:
    """Return a mask function as transformers makes it for packed sequences."""
    ids = mu.find_packed_sequence_indices(positions)
    return mu.and_masks(mu.remap_positions_for_packed_sequence(inner, positions), mu.packed_sequence_mask_function(ids))


PADDING = torch.tensor([0, 5])
MARKS = ints(0, 4, 2, 2 * SIZE)
KNOWN: dict[str, Callable[[], Callable[..., Any]]] = {
    "causal": lambda: mu.causal_mask_function,
    "bidirectional": lambda: mu.bidirectional_mask_function,
    "sliding": lambda: mu.sliding_window_causal_mask_function(4),
    "sliding to both sides": lambda: mu.sliding_window_bidirectional_mask_function(3),
    "chunked": lambda: mu.chunked_causal_mask_function(5, torch.zeros(2, dtype=torch.int64)),
    "chunked behind padding": lambda: mu.chunked_causal_mask_function(5, PADDING),
    "blocks": lambda: mu.or_masks(mu.causal_mask_function, mu.blockwise_overlay(ints(-1, 3, 2, 2 * SIZE))),
    "packed": lambda: packed(mu.causal_mask_function, a_packing()),
    "packed, sliding": lambda: packed(mu.sliding_window_causal_mask_function(3), a_packing()),
    "packed, chunked": lambda: packed(
        mu.chunked_causal_mask_function(2, torch.zeros(2, dtype=torch.int64)), a_packing()
    ),
}
UNKNOWN: dict[str, Callable[[], Callable[..., Any]]] = {
    "own": lambda: mu.and_masks(mu.causal_mask_function, lambda b, h, q, k: (q + b) % 3 != k % 2),
    "look-up": lambda: lambda b, h, q, k: MARKS[b, q] <= MARKS[b, k],
    "padding": lambda: mu.or_masks(mu.causal_mask_function, mu.padding_mask_function(ints(0, 2, 2, 2 * SIZE).bool())),
    "offset": lambda: mu.add_offsets_to_mask_function(mu.causal_mask_function, 2, 5),
    "packed otherwise": lambda: mu.and_masks(
        mu.remap_positions_for_packed_sequence(mu.causal_mask_function, a_packing()),
        mu.packed_sequence_mask_function(a_packing() * 0),
    ),
    "packed, own": lambda: packed(lambda b, h, q, k: (q * k) % 3 != 1, a_packing()),
    "packed twice": lambda: packed(packed(mu.causal_mask_function, a_packing()), a_packing()),
}


def functions_in(rule: Any) -> bool:
    return (
        isinstance(rule, FunctionMask) or any(map(functions_in, vars(rule).values()))
        if hasattr(rule, "pairs")
        else False
    )


def assert_same_mask(given: CarriedMask, expected: torch.Tensor) -> None:
    """Compare the rule with an array, pair by pair, and what it says of tiles."""
    B, _, Sq, Sk = given.shape
    found = given.rule.to_array(Sq, Sk, query_offset=given.query_offset, xp=torch)
    assert torch.equal(found.expand(B, 1, Sq, Sk), expected)
    for rows in ((0, Sq // 2), (Sq // 2, Sq)):
        for keys in ((0, Sk // 3), (Sk // 3, Sk)):
            seen = given.rule.any_allowed(rows, keys, query_offset=given.query_offset)
            assert bool(seen) >= bool(expected[..., slice(*rows), slice(*keys)].any())


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_rules_say_what_functions_say(name: str) -> None:
    function = (KNOWN | UNKNOWN)[name]()
    is_packed = name.startswith("packed")
    for q_offset, kv_offset, Sq in ((0, 0, SIZE),) if is_packed else ((0, 0, SIZE), (9, 3, 3), (SIZE - 1, 0, 1)):
        sizes = {"batch_size": 2, "q_length": Sq, "kv_length": SIZE, "q_offset": q_offset, "kv_offset": kv_offset}
        expected = mu.sdpa_mask(**sizes, mask_function=function, allow_is_causal_skip=False)
        for use_vmap in (False, True):
            given = attention_mask(**sizes, mask_function=function, use_vmap=use_vmap)
            given.rule = _with_batch(given.rule)
            assert_same_mask(given, expected)
        assert functions_in(rule_of(function, kv_offset=kv_offset)) == (name in UNKNOWN)


def _with_batch(rule: Any) -> Any:
    """Say that functions depend on the batch item, which `to_array` has to be told."""
    if isinstance(rule, FunctionMask):
        return FunctionMask(rule.mask_mod, batch=2)
    if hasattr(rule, "pairs"):
        for name, part in vars(rule).items():
            vars(rule)[name] = _with_batch(part)
    return rule


def test_rules_that_transformers_makes_most_often() -> None:
    assert rule_of(mu.causal_mask_function) == CausalMask()
    assert rule_of(mu.sliding_window_causal_mask_function(4), kv_offset=3) == WindowMask(3, None) & CausalMask()
    rule = rule_of(packed(mu.sliding_window_causal_mask_function(4), a_packing()))
    assert str(rule).startswith("(WindowMask(3, None) & CausalMask()) & SegmentMask") or isinstance(
        rule.right, SegmentMask
    )
    assert str(rule_of(mu.and_masks())) == str(WindowMask(None, None))
    assert rule_of(mu.or_masks()).density(3, 3) == 0.0
    with pytest.raises(TypeError, match="mask_function must be callable, got int"):
        rule_of(3)


@pytest.mark.parametrize("kind", ["none", "left", "right", "both", "holes", "nothing", "short", "one"])
@pytest.mark.parametrize("kv_offset", [0, 4])
def test_padding(kind: str, kv_offset: int) -> None:
    total = SIZE + kv_offset
    place = torch.arange(total)
    tokens = {
        "none": torch.ones(2, total, dtype=torch.bool),
        "left": torch.stack([place >= 0, place >= 7]),
        "right": torch.stack([place < total - 5, place < 9]),
        "both": torch.stack([(place > 5) & (place < 9), place > 2]),
        "holes": torch.stack([place % 3 > 0, place >= 0]),
        "nothing": torch.stack([place < 0, place > 3]),
        "short": torch.ones(2, total - 3, dtype=torch.bool),
        "one": (place > 7)[None].expand(2, total),
    }[kind]
    sizes = {"batch_size": 2, "q_length": SIZE, "kv_length": SIZE, "q_offset": kv_offset, "kv_offset": kv_offset}
    expected = mu.sdpa_mask(**sizes, attention_mask=tokens, allow_is_causal_skip=False)
    given = attention_mask(**sizes, attention_mask=tokens.long())
    assert_same_mask(given, expected)
    assert (given.rule == CausalMask()) == (kind == "none")


def test_nothing_to_say() -> None:
    sizes = {"batch_size": 2, "q_length": 3, "kv_length": 4, "mask_function": mu.bidirectional_mask_function}
    ones = torch.ones(2, 4)
    assert attention_mask(**sizes, attention_mask=ones, allow_is_bidirectional_skip=True) is None
    assert isinstance(attention_mask(**sizes, attention_mask=ones), CarriedMask)


def a_carried_mask(dtype: torch.dtype = torch.float32) -> tuple[CarriedMask, torch.Tensor]:
    arguments = {"batch_size": 2, "q_length": 3, "kv_length": 5, "q_offset": 2, "dtype": dtype}
    return attention_mask(**arguments), mu.eager_mask(**arguments)


def test_what_reads_the_mask_gets_the_numbers_of_eager() -> None:
    carried, numbers = a_carried_mask(torch.bfloat16)
    assert isinstance(carried, torch.Tensor)
    assert (carried.shape, carried.dtype, carried.device) == (numbers.shape, numbers.dtype, numbers.device)
    assert repr(carried) == "CarriedMask(CausalMask(), query_offset=2, shape=(2, 1, 3, 5))"
    assert carried._numbers is None
    assert carried.detach() is carried
    for read in (lambda m: m + 1, lambda m: m[:, :, :, :4], lambda m: torch.where(m == 0, 1.0, 2.0), torch.clone):
        result = read(carried)
        assert type(result) is torch.Tensor
        assert torch.equal(result, read(numbers))


def test_a_mask_that_was_changed_in_place_is_an_array() -> None:
    x = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    kv = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(1))
    carried, numbers = a_carried_mask()
    assert not (carried + 1).isnan().any()
    assert not carried.is_exposed
    for mask in (carried, numbers):
        mask[:, :, :, 1] = -torch.inf
    results = [attention_forward(SimpleNamespace(), x, kv, kv, mask)[0] for mask in (carried, numbers)]
    assert torch.equal(*results)


CALLS: dict[str, dict[str, Any]] = {
    "causal by default": {},
    "layer that is not causal": {"module": {"is_causal": False}},
    "argument before layer": {"module": {"is_causal": True}, "is_causal": False},
    "scaling": {"scaling": 0.3},
    "bias": {"position_bias": torch.randn(1, 4, 6, 9)},
    "mask": {"attention_mask": torch.rand(2, 1, 6, 9) < 0.7},
    "mask and bias": {"attention_mask": torch.randn(2, 1, 6, 9), "position_bias": torch.randn(1, 4, 6, 9)},
    "one query": {"Sq": 1},
    "what changes nothing": {
        "position_ids": torch.arange(3),
        "output_attentions": None,
        "sliding_window": 9,
        "unheard_of": None,
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_mean_what_they_mean_to_sdpa(name: str) -> None:
    arguments = dict(CALLS[name])
    module = SimpleNamespace(num_key_value_groups=2, **arguments.pop("module", {}))
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, arguments.pop("Sq", 6), 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 9, 8, generator=generator)
    mask = arguments.pop("attention_mask", None)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, **arguments)
    given, weights = attention_forward(module, query, key, value, mask, **arguments)
    assert weights is None
    assert given.shape == expected.shape
    assert given.is_contiguous()
    assert torch.allclose(given, expected, atol=2e-6)


def test_dropout_only_while_a_layer_trains() -> None:
    x = torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Identity()
    call = lambda **more: attention_forward(layer, x, x, x, None, dropout=0.5, output_attentions=True, **more)
    share = (call(rng=3)[1].tril() == 0).float().mean() - 39 / 80
    assert 0.2 < float(share) < 0.3
    assert torch.equal(call(rng=3)[0], call(rng=3)[0])
    torch.manual_seed(5)
    one = call()[0]
    torch.manual_seed(5)
    assert torch.equal(one, call()[0])
    layer.eval()
    assert torch.allclose(call()[0], attention_forward(layer, x, x, x, None)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"head_mask": torch.ones(4)}, NotImplementedError, "'head_mask' is not known"),
        ({"sinks": torch.ones(2, 4, 6, 1)}, NotImplementedError, "'sinks' is not known"),
        ({"indices": torch.zeros(2, 6, 3)}, NotImplementedError, "'indices' is not known"),
        ({"sliding_window": 4}, NotImplementedError, "sliding_window needs the attention_mask"),
        ({"cu_seq_lens_q": torch.tensor([0, 6])}, NotImplementedError, "cu_seq_lens_q needs the attention_mask"),
        ({"attention_mask": "carried"}, ValueError, r"was made for \(Sq, Sk\) = \(3, 5\), got \(6, 9\)"),
        ({"attention_mask": torch.ones(2, 1, 6, 9, dtype=torch.int64)}, TypeError, "mask"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    query, kv = torch.ones(2, 4, 6, 8), torch.ones(2, 4, 9, 8)
    mask = arguments.pop("attention_mask", None)
    with pytest.raises(error, match=message):
        attention_forward(
            SimpleNamespace(), query, kv, kv, a_carried_mask()[0] if mask == "carried" else mask, **arguments
        )


@pytest.mark.parametrize("name", ["", "eager", "sdpa", "my_flash", "flex_attention", "a/b", "paged|xp"])
def test_names_that_mean_something_else(name: str) -> None:
    with pytest.raises(ValueError, match="name must be none that transformers gives a meaning"):
        register(name)


def test_another_name() -> None:
    register("exact")
    assert tf.AttentionInterface()["exact"] is attention_forward
    assert tf.AttentionMaskInterface()["exact"] is attention_mask
    with pytest.raises(TypeError, match="name must be a str, got int"):
        register(3)


def test_a_mask_that_goes_into_compiled_code_is_an_array() -> None:
    inputs, settings = inputs_of("gemma2"), {"max_new_tokens": 6, "do_sample": False}
    model = model_of("gemma2")
    expected = model.generate(**inputs, **settings)
    model.set_attn_implementation("attention_xp")
    # Transformers makes the masks of a static cache before it calls the compiled model.
    compiling = tf.CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compiling._compile_all_devices = True
    given = model.generate(**inputs, **settings, cache_implementation="static", compile_config=compiling)
    assert torch.equal(given, expected)


@torch.no_grad()
def test_a_model_with_attention_of_its_own_reads_the_mask() -> None:
    config = tf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=50)
    ids, mask = torch.arange(18).reshape(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[1, :4] = 0
    results = []
    for implementation in ("eager", "attention_xp"):
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
        results.append(model(ids, attention_mask=mask).logits)
    assert torch.equal(*results)


def test_what_transformers_refuses_for_names_that_it_does_not_know() -> None:
    with pytest.raises(Exception, match="output_attentions"):  # of huggingface_hub
        tf.LlamaConfig(output_attentions=True, attn_implementation="attention_xp")


def test_whoever_reads_the_storage_gets_the_numbers():
    mask = attention_mask(2, 3, 5, q_offset=2)
    assert isinstance(mask, CarriedMask)
    numbers = mask.dense().numpy()
    for read in (np.from_dlpack, np.asarray, CarriedMask.tolist, CarriedMask.numpy):
        np.testing.assert_array_equal(np.asarray(read(mask)), numbers)
    np.testing.assert_array_equal(mask.share_memory_().numpy(), numbers)
    assert copy.deepcopy(mask).rule == mask.rule


def test_padding_may_be_mapped() -> None:
    """As for gradients of single examples, where nobody can look at it."""
    model, functional_call = model_of("llama"), torch.func.functional_call
    ids, is_token = torch.arange(3, 15).reshape(2, 6), torch.tensor([[1] * 6, [0] * 2 + [1] * 4])

    def loss(weight: torch.Tensor, ids: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
        given = {"attention_mask": is_token[None], "use_cache": False}
        return functional_call(model, {"lm_head.weight": weight}, (ids[None],), given).logits[0, -1].logsumexp(-1)

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    found = []
    for name in ("attention_xp", "eager"):
        model.set_attn_implementation(name)
        found.append(gradients(model.lm_head.weight, ids, is_token))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_padding_of_integers_shows_the_same_numbers() -> None:
    is_token = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    numbers, wanted = (attention_mask(2, 4, 4, attention_mask=mask) + 0 for mask in (is_token, is_token.bool()))
    assert torch.equal(numbers, wanted)
