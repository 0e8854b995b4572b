"""Read a long text with a model of transformers that attends in a window, and see what it costs to say so by a rule.

``python examples/long_context.py --length 2048``; what it needs is in `README.md` beside it.

A model of Mistral's shape, with random weights, reads 8,192 tokens of which each attends the last 128, itself included. Through
``attn_implementation="attention_xp"`` its layers are handed the rule itself, and what lies outside of the window costs
nothing. The same call is timed with the mask as an array, and with the attention that transformers would choose. The model is
narrow, so that attention is most of the work; in wider ones (``--width``) the other layers take their share of the time.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.masking_utils import create_sliding_window_causal_mask

from attention_xp.interop.transformers import register

WAYS = ("rule", "array", "sdpa")


def make_model(width: int, window: int, max_length: int) -> MistralForCausalLM:
    """Return a model of two layers with random weights, which are always the same."""
    config = MistralConfig(
        vocab_size=256, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, head_dim=64,
        num_attention_heads=width // 32, num_key_value_heads=width // 128, sliding_window=window,
        max_position_embeddings=max_length,
    )  # fmt: skip
    torch.manual_seed(0)
    return MistralForCausalLM(config).eval()


def ways_to_attend(model: MistralForCausalLM, tokens: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Return functions that read the tokens and give the last hidden states."""

    def read(implementation: str, mask: Any = None) -> torch.Tensor:
        model.set_attn_implementation(implementation)
        with torch.inference_mode():
            states: torch.Tensor = model.model(tokens, attention_mask=mask, use_cache=False).last_hidden_state
        return states

    def as_an_array() -> torch.Tensor:
        model.set_attn_implementation("sdpa")
        shape = torch.empty(*tokens.shape, 1)
        mask = create_sliding_window_causal_mask(model.config, shape, attention_mask=None, cache=None)
        return read("attention_xp", mask)  # four axes: handed to the layers as it is

    return {"rule": lambda: read("attention_xp"), "array": as_an_array, "sdpa": lambda: read("sdpa")}


def best_times(ways: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, float]:
    """Return the best time of each way in seconds, of so many rounds through all of them."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, read in ways.items():
            start = time.perf_counter()
            read()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main(arguments: list[str] | None = None) -> None:
    """Time all ways to attend, and compare their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192, help="number of tokens")
    parser.add_argument("--window", type=int, default=128, help="how many tokens each attends, itself included")
    parser.add_argument("--width", type=int, default=256, help="width of the model, a multiple of 128")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed; the best time counts")
    options = parser.parse_args(arguments)

    register()
    model = make_model(options.width, options.window, options.length)
    tokens = torch.randint(256, (1, options.length))
    ways = ways_to_attend(model, tokens)
    results = {name: read() for name, read in ways.items()}
    times = best_times(ways, options.rounds)
    for name in WAYS:
        error = float((results[name] - results["sdpa"]).abs().max())
        ratio = times[name] / times["rule"]
        print(f"{name:5}  {times[name]:7.3f} s  {ratio:5.1f} times the rule  {error:.1e} from sdpa")


if __name__ == "__main__":
    main()
