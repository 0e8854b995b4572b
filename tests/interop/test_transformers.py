"""Models of transformers with attention computed here, against their own eager attention."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from attention_xp.interop.transformers import register
from attention_xp.interop.transformers._carried_mask import CarriedMask
from tests.interop._models import CAUSAL, ENCODER_DECODERS, ENCODERS, inputs_of, model_of, padding, tokens

register()
LOGITS = 5e-5  # they are up to 7
WEIGHTS = 1e-5


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model reads the mask that travels through it."""
    reads: list[CarriedMask] = []
    monkeypatch.setattr(CarriedMask, "dense", reads.append)
    yield
    assert not reads


def by_both(model: PreTrainedModel, run: Callable[[PreTrainedModel], Any]) -> tuple[Any, Any]:
    """Run a model with its own attention, and with ours."""
    results = []
    for implementation in ("eager", "attention_xp"):
        model.set_attn_implementation(implementation)
        torch.manual_seed(0)
        results.append(run(model))
    return results[0], results[1]


def assert_near(given: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert given.shape == expected.shape
    assert given.dtype == expected.dtype
    assert float((given - expected).abs().max()) < tolerance


@torch.no_grad()
def assert_same_logits(model: PreTrainedModel, real: Any = ..., **inputs: Any) -> None:
    expected, given = by_both(model, lambda m: m(**inputs).logits)
    assert_near(given[real], expected[real], LOGITS)


def assert_same_tokens(model: PreTrainedModel, *, count: int = 10, **inputs: Any) -> None:
    expected, given = by_both(model, lambda m: m.generate(**inputs, max_new_tokens=count, do_sample=False))
    assert torch.equal(given, expected)


@pytest.mark.parametrize("name", [*CAUSAL, *ENCODERS, *ENCODER_DECODERS])
def test_logits(name: str) -> None:
    inputs = inputs_of(name)
    is_of_decoder = name in ENCODER_DECODERS or "attention_mask" not in inputs
    assert_same_logits(model_of(name), ... if is_of_decoder else inputs["attention_mask"] == 1, **inputs)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [*CAUSAL, *ENCODER_DECODERS])
def test_greedy_tokens(name: str, cache: str) -> None:
    inputs = inputs_of(name)
    inputs.pop("decoder_input_ids", None)
    assert_same_tokens(model_of(name), cache_implementation=cache, **inputs)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "whisper"])
@torch.no_grad()
def test_weights(name: str) -> None:
    expected, given = by_both(model_of(name), lambda m: m(**inputs_of(name), output_attentions=True))
    kinds = [kind for kind in expected if kind.endswith("attentions") and expected[kind]]
    assert kinds
    for kind in kinds:
        assert len(given[kind]) == len(expected[kind]) == 2
        for ours, theirs in zip(given[kind], expected[kind], strict=True):
            empty = ours.sum(-1, keepdim=True) == 0  # rows of padding, see below
            assert_near(ours, torch.where(empty, 0.0, theirs), WEIGHTS)


@torch.no_grad()
def test_rows_of_padding_are_zero() -> None:
    _, given = by_both(model_of("llama"), lambda m: m(**inputs_of("llama"), output_attentions=True))
    totals = given.attentions[0].sum(-1)
    assert_near(totals, padding("left")[:, None].expand_as(totals).float(), 1e-6)


def test_beams() -> None:
    assert_same_tokens(model_of("gemma2"), num_beams=3, **inputs_of("gemma2"))


def test_samples() -> None:
    expected, given = by_both(
        model_of("llama"), lambda m: m.generate(**inputs_of("llama"), max_new_tokens=10, do_sample=True, top_k=9)
    )
    assert torch.equal(given, expected)


def test_assisted_decoding() -> None:
    model = model_of("llama")
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        assistant.lm_head.weight += 0.05 * torch.randn(
            assistant.lm_head.weight.shape, generator=torch.Generator().manual_seed(3)
        )

    def run(m: PreTrainedModel) -> torch.Tensor:
        assistant.set_attn_implementation(m.config._attn_implementation)
        return m.generate(tokens(1), assistant_model=assistant, max_new_tokens=10, do_sample=False)

    expected, given = by_both(model, run)
    assert torch.equal(given, expected)


@pytest.mark.parametrize("name", ["llama", "gemma3", "llama4, chunks"])
@torch.no_grad()
def test_prefill_in_pieces(name: str) -> None:
    ids, mask = tokens(3, 20), padding("left", 3, 20)

    def run(model: PreTrainedModel) -> torch.Tensor:
        cache, start, logits = DynamicCache(config=model.config), 0, []
        for count in (11, 3, 1, 5):
            stop = start + count
            step = model(ids[:, start:stop], attention_mask=mask[:, :stop], cache=cache)
            logits.append(step.logits)
            start = stop
        return torch.cat(logits, dim=1)

    expected, given = by_both(model_of(name), run)
    assert_near(given[mask == 1], expected[mask == 1], LOGITS)


@pytest.mark.parametrize("name", ["llama", "gemma2", "llama4, chunks"])
@torch.no_grad()
def test_packed_sequences(name: str) -> None:
    position_ids = torch.cat([torch.arange(n) for n in (7, 1, 9)])[None]
    model = model_of(name)
    assert_same_logits(model, input_ids=tokens(1), position_ids=position_ids, use_cache=False)
    logits = model(tokens(1), position_ids=position_ids, use_cache=False).logits
    alone = model(tokens(1)[:, 8:], use_cache=False).logits
    assert_near(logits[:, 8:], alone, LOGITS)


@pytest.mark.parametrize("kind", ["boolean", "floating"])
@torch.no_grad()
def test_masks_of_the_user(kind: str) -> None:
    keep = torch.rand(3, 1, 17, 17, generator=torch.Generator().manual_seed(5)) < 0.5
    keep |= torch.eye(17, dtype=torch.bool)
    floating = torch.zeros(()).masked_fill(~keep, torch.finfo(torch.float32).min)
    expected, given = by_both(
        model_of("llama"),
        lambda m: (
            m(
                tokens(),
                # eager adds 1 where a boolean mask is True
                attention_mask=keep if kind == "boolean" and m.config._attn_implementation != "eager" else floating,
            ).logits
        ),
    )
    assert_near(given, expected, LOGITS)


@torch.no_grad()
def test_mask_functions_of_the_user() -> None:
    model = model_of("llama")
    marks = torch.arange(17) % 3

    def overlay(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (marks[kv_idx] == 1) & (q_idx - kv_idx < 9) & (marks.max() > batch_idx)

    def run(m: PreTrainedModel) -> torch.Tensor:
        embeddings = m.get_input_embeddings()(tokens())
        mask = create_causal_mask(
            config=m.config,
            inputs_embeds=embeddings,
            attention_mask=padding("left"),
            cache=None,
            or_mask_function=overlay,
        )
        return m(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits

    expected, given = by_both(model, run)
    assert_near(given[padding("left") == 1], expected[padding("left") == 1], LOGITS)


def losses(model: PreTrainedModel) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    mask = padding("left")
    labels = tokens().masked_fill(mask.cumsum(-1) < 2, -100)  # what padding predicts does not count
    loss = model(tokens(), attention_mask=mask, labels=labels, use_cache=False).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same_gradients(model: PreTrainedModel) -> None:
    (loss, gradients), (ours, found) = by_both(model, losses)
    assert_near(ours, loss, 1e-5)
    assert len(found) == len(gradients) > 10
    for given, expected in zip(found, gradients, strict=True):
        assert float((given - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-8


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
def test_gradients(name: str) -> None:
    assert_same_gradients(model_of(name).train())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_with_checkpoints(use_reentrant: bool) -> None:
    model = model_of("gemma2").train()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    assert_same_gradients(model)


def test_dropout_is_the_same_where_layers_are_recomputed() -> None:
    model = model_of("llama", attention_dropout=0.3).train()
    model.set_attn_implementation("attention_xp")
    found = []
    for recompute in (False, True):
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        found.append(losses(model))
    assert_near(found[1][0], found[0][0], 1e-6)
    for once, again in zip(found[0][1], found[1][1], strict=True):
        assert_near(again, once, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
@torch.no_grad()
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = model_of(name)
    real = padding("left") == 1
    exact = model(**inputs_of(name)).logits[real]
    expected, given = by_both(model.to(dtype), lambda m: m(**inputs_of(name)).logits[real].float())
    assert float((given - exact).norm()) < 1.5 * float((expected - exact).norm())


@pytest.mark.timeout(600)
def test_compiled() -> None:
    model = model_of("llama")
    model.set_attn_implementation("attention_xp")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        given = compiled(**inputs_of("llama"), use_cache=False).logits
    model.set_attn_implementation("eager")
    real = padding("left") == 1
    with torch.no_grad():
        assert_near(given[real], model(**inputs_of("llama")).logits[real], LOGITS)
