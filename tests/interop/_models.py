"""Small models of transformers with random weights, and what to give them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

__all__ = ["CAUSAL", "ENCODERS", "ENCODER_DECODERS", "inputs_of", "model_of", "padding", "tokens"]

VOCABULARY = 99
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,  # so that weights are not nearly uniform
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
WINDOWS = GROUPED | {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "llama, one key/value head": lambda: tf.LlamaConfig(**SIZES, num_key_value_heads=1),
    "gpt2": lambda: tf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=128, initializer_range=0.25,
        pad_token_id=0, bos_token_id=1, eos_token_id=None,
    ),
    "gemma2": lambda: tf.Gemma2Config(**WINDOWS, attn_logit_softcapping=2.0, query_pre_attn_scalar=16),
    "gemma3": lambda: tf.Gemma3TextConfig(**WINDOWS, query_pre_attn_scalar=16),
    "gpt-oss": lambda: tf.GptOssConfig(
        **WINDOWS, num_local_experts=2, num_experts_per_tok=1, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "mistral": lambda: tf.MistralConfig(**GROUPED, sliding_window=6),
    "qwen3": lambda: tf.Qwen3Config(**WINDOWS | {"layer_types": None}, use_sliding_window=True, max_window_layers=1),
    "llama4, chunks": lambda: tf.Llama4TextConfig(
        **GROUPED, head_dim=8, attention_chunk_size=6, no_rope_layers=[1, 0], intermediate_size_mlp=48,
        num_local_experts=2, num_experts_per_tok=1, layer_types=["chunked_attention", "full_attention"],
    ),
}  # fmt: skip
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertConfig(**SIZES),
    "modernbert": lambda: tf.ModernBertConfig(
        **SIZES | {"eos_token_id": 2}, local_attention=6, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
    ),
    "vit": lambda: tf.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
        initializer_range=0.25,
    ),
}  # fmt: skip
ENCODER_DECODERS: dict[str, Callable[[], Any]] = {
    "t5": lambda: tf.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=VOCABULARY, relative_attention_num_buckets=8,
        relative_attention_max_distance=16, pad_token_id=0, decoder_start_token_id=0, eos_token_id=None,
    ),
    "whisper": lambda: tf.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=VOCABULARY, num_mel_bins=8, max_source_positions=16,
        max_target_positions=64, init_std=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    ),
}  # fmt: skip
_CLASSES = {"bert": tf.BertForMaskedLM, "modernbert": tf.ModernBertForMaskedLM, "vit": tf.ViTForImageClassification}
_CLASSES |= {"t5": tf.T5ForConditionalGeneration, "whisper": tf.WhisperForConditionalGeneration}


def model_of(name: str, **changes: Any) -> PreTrainedModel:
    """Return a model that does not train, always with the same weights."""
    config = (CAUSAL | ENCODERS | ENCODER_DECODERS)[name]()
    for attribute, value in changes.items():
        setattr(config, attribute, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = _CLASSES.get(name)
        model = tf.AutoModelForCausalLM.from_config(config) if kind is None else kind(config)
    return model.eval()


def tokens(batch: int = 3, length: int = 17, seed: int = 0) -> torch.Tensor:
    """Return random tokens, none of them special."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(side: str, batch: int = 3, length: int = 17) -> torch.Tensor:
    """Return which tokens are no padding: all but five of the second sequence, and but eight of the third."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for item, count in ((1, 5), (2, 8)):
        mask[item, slice(count) if side == "left" else slice(length - count, None)] = 0
    return mask


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    """Return what a model is given, with padding where it knows any."""
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 32, generator=generator), "decoder_input_ids": tokens(2, 9)}
    if name == "t5":
        return {"input_ids": tokens(), "attention_mask": padding("right"), "decoder_input_ids": tokens(3, 9, seed=1)}
    return {"input_ids": tokens(), "attention_mask": padding("right" if name in ENCODERS else "left")}
