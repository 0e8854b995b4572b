"""The same model in transformers: its weights, its tokens, and how fast it writes."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import generate
import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from attention_xp import permute_rotary_weights
from smollm.gguf import Floats
from smollm.model import Config, Weights

ROUNDS = 5
TOLERANCE = 1e-4  # between logits, in float32 here and in float64 there


def in_transformers(
    about: dict[str, Any],
    tensors: dict[str, Floats],
    of: tuple[type[PreTrainedConfig], type[PreTrainedModel]] = (LlamaConfig, LlamaForCausalLM),
    **more: Any,
) -> Any:
    """Return the model of transformers, with the weights of a file; `of` may be another of Llama's family."""
    config = Config.of(about)
    weights = Weights.of(tensors)
    made = of[0](
        vocab_size=weights.tokens.shape[0], hidden_size=weights.tokens.shape[1], head_dim=config.head_width,
        intermediate_size=weights.layers[0].down.shape[1], num_hidden_layers=len(weights.layers),
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, max_position_embeddings=config.context,
        rms_norm_eps=config.epsilon, rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, **more,
    )  # fmt: skip
    named = {"model.embed_tokens": weights.tokens, "lm_head": weights.tokens, "model.norm": weights.norm}
    for i, layer in enumerate(weights.layers):
        H, Hkv, D = config[:3]
        query, key, value = np.split(layer.qkv, [H * D, (H + Hkv) * D])
        gate, up = np.split(layer.gate_up, 2)
        parts = {
            "input_layernorm": layer.attention_norm,
            # There, features half of a head apart turn together.
            "self_attn.q_proj": permute_rotary_weights(query, H, to="half", axis=0),
            "self_attn.k_proj": permute_rotary_weights(key, Hkv, to="half", axis=0),
            "self_attn.v_proj": value,
            "self_attn.o_proj": layer.project,
            "post_attention_layernorm": layer.mlp_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down,
        }
        named |= {f"model.layers.{i}.{name}": w for name, w in parts.items()}
    logging.disable_progress_bar()
    state = {f"{name}.weight": torch.tensor(w) for name, w in named.items()}
    return of[1].from_pretrained(None, config=made, state_dict=state).eval()


def write_there(model: Any, ids: Sequence[int], count: int) -> list[int]:
    """Return so many tokens that follow ids."""
    row = torch.tensor([ids])
    written = model.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=count)
    tokens: list[int] = written[0, len(ids) :].tolist()
    return tokens


def logits_there(model: Any, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the logits after each of ids, (S,) -> (S, V), of one call in float64."""
    with torch.inference_mode():
        logits: npt.NDArray[np.float64] = model.double()(torch.tensor([ids])).logits[0].numpy()
    model.float()  # and nothing was lost
    return logits


def write_here(model: generate.Model, ids: Sequence[int], count: int) -> tuple[list[int], Floats]:
    """Return so many tokens that follow ids, and the logits, (count, V), that they were taken from."""
    rows = []

    def likeliest(logits: Any) -> int:
        rows.append(logits)
        return generate.choose(logits, np.random.default_rng())

    conversation = generate.Conversation(model, model.caches(len(ids) + count))
    return list(generate.generate(conversation, ids, count, likeliest)), np.stack(rows)


def medians(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median time of each, of so many rounds through all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def compare(about: dict[str, Any], tensors: dict[str, Floats], ids: Sequence[int], count: int) -> bool:
    """Print how fast every library writes, and how far its logits are from those of transformers; whether one disagrees."""
    reference = in_transformers(about, tensors)
    expected = write_there(reference, ids, count)
    logits = logits_there(reference, [*ids, *expected[:-1]])[len(ids) - 1 :]  # (S, V) -> (count, V)
    models = {backend: generate.Model.of(backend, about, tensors) for backend in generate.BACKENDS}
    errors = {}
    for backend, model in models.items():
        tokens, found = write_here(model, ids, count)
        errors[backend] = float(np.abs(found - logits).max()) if tokens == expected else math.nan
    ways: dict[str, Callable[[], Any]] = {"transformers": partial(write_there, reference, ids, count)}
    ways |= {backend: partial(write_here, model, ids, count) for backend, model in models.items()}
    times = medians(ways, ROUNDS)
    for name, seconds in times.items():
        pace = f"{count / seconds:5.1f} tokens per second, {times['transformers'] / seconds:.2f} times transformers'"
        print(f"{name}: {pace}" + (f", logits {errors[name]:.1e} apart" if name in errors else ""))
    return not all(error < TOLERANCE for error in errors.values())  # NaN is a failure
