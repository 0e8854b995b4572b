"""The model: Llama (Touvron et al., 2023) with grouped-query heads, the same for every array library.

The weights are those of the file as they are: there, neighbouring features of a head turn together, which is
`interleaved=True`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from array_api_compat import array_namespace, device

from attention_xp import RotaryCache, rotary_cache, rotary_embedding
from attention_xp.cache import append_and_attend, lengths

# No common base class exists across array libraries: these names are for the reader.
Array: TypeAlias = Any
Cache: TypeAlias = Any


class Config(NamedTuple):
    """The numbers that the shapes of the weights do not tell."""

    heads: int
    kv_heads: int
    head_width: int
    context: int  # tokens that the model has seen at once in its training
    rotary_base: float
    epsilon: float

    @classmethod
    def of(cls, about: dict[str, Any]) -> "Config":
        """Return what a GGUF file tells."""
        if about["general.architecture"] != "llama":
            raise ValueError(f"expected the architecture llama, got {about['general.architecture']}")
        keys = (
            "attention.head_count", "attention.head_count_kv", "rope.dimension_count", "context_length",
            "rope.freq_base", "attention.layer_norm_rms_epsilon",
        )  # fmt: skip
        return cls(*(about[f"llama.{key}"] for key in keys))


class Layer(NamedTuple):
    """One layer; matrices are (out, in), and those that go over the same input are one."""

    attention_norm: Array  # (E,)
    qkv: Array  # ((H + 2 * Hkv) * D, E)
    project: Array  # (E, H * D)
    mlp_norm: Array  # (E,)
    gate_up: Array  # (2 * F, E)
    down: Array  # (E, F)


class Weights(NamedTuple):
    """The whole model; a named tuple is a pytree to JAX."""

    tokens: Array  # (V, E), which go in by it, and come out
    norm: Array  # (E,)
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, tensors: dict[str, Array]) -> "Weights":
        """Return the tensors of a GGUF file in their places."""
        xp = array_namespace(*tensors.values())

        def layer(i: int) -> Layer:
            def matrix(*names: str) -> Array:
                found = [tensors[f"blk.{i}.{name}.weight"] for name in names]
                return found[0] if len(found) == 1 else xp.concat(found)

            return Layer(
                attention_norm=matrix("attn_norm"),
                qkv=matrix("attn_q", "attn_k", "attn_v"),
                project=matrix("attn_output"),
                mlp_norm=matrix("ffn_norm"),
                gate_up=matrix("ffn_gate", "ffn_up"),
                down=matrix("ffn_down"),
            )

        count = sum(name.endswith(".attn_norm.weight") for name in tensors)
        layers = tuple(layer(i) for i in range(count))
        return cls(tensors["token_embd.weight"], tensors["output_norm.weight"], layers)


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    """Scale every row to root mean square 1, then every column by its gain (Zhang and Sennrich, 2019)."""
    xp = array_namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain


def silu(x: Array) -> Array:
    """Return x times its logistic function, written so that nothing overflows."""
    xp = array_namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(0.5 * x))


def attention(
    x: Array, layer: Layer, cache: Cache, angles: RotaryCache, count: Array | None, config: Config
) -> tuple[Array, Cache]:
    """Let every token look at itself and at those before it, which the cache holds: (S, E) -> (S, E)."""
    xp = array_namespace(x)
    S, (H, Hkv, D) = x.shape[0], config[:3]
    split = xp.reshape(x @ layer.qkv.T, (1, S, H + 2 * Hkv, D))  # (S, E) -> (1, S, H + 2 * Hkv, D)
    split = xp.permute_dims(split, (0, 2, 1, 3))  # (1, S, H + 2 * Hkv, D) -> (1, H + 2 * Hkv, S, D)
    turned = rotary_embedding(split[:, : H + Hkv, :, :], cache=angles, interleaved=True)
    query, key, value = turned[:, :H, :, :], turned[:, H:, :, :], split[:, H + Hkv :, :, :]
    mixed, cache = append_and_attend(cache, query, key, value, lengths=count, is_causal=True)
    rows = xp.reshape(xp.permute_dims(mixed, (0, 2, 1, 3)), (S, H * D))  # (1, H, S, D) -> (S, H * D)
    return rows @ layer.project.T, cache  # (S, H * D) -> (S, E)


def feed_forward(x: Array, layer: Layer) -> Array:
    """Apply the two dense layers, the first with a gate (Shazeer, 2020): (S, E) -> (S, E)."""
    wide = x @ layer.gate_up.T  # (S, E) -> (S, 2 * F)
    F = wide.shape[1] // 2
    return (silu(wide[:, :F]) * wide[:, F:]) @ layer.down.T  # (S, F) -> (S, E)


def enter(tokens: Array, ids: Array, start: Array, config: Config) -> tuple[Array, RotaryCache]:
    """Return what goes into the first layer, (S,) -> (S, E), and the angles of the positions from start, (1,), on."""
    xp = array_namespace(tokens)
    positions = start + xp.arange(ids.shape[0], dtype=ids.dtype, device=device(ids))  # (1,) + (S,) -> (S,)
    angles = rotary_cache(positions, config.head_width, base=config.rotary_base)  # (S,) -> 2 times (S, D / 2)
    return xp.take(tokens, ids, axis=0), angles  # (V, E), (S,) -> (S, E)


def block(
    x: Array, layer: Layer, cache: Cache, angles: RotaryCache, count: Array | None, config: Config
) -> tuple[Array, Cache]:
    """Add to x (S, E) first what attention finds, then what the dense layers make of it."""
    attended, cache = attention(rms_norm(x, layer.attention_norm, config.epsilon), layer, cache, angles, count, config)
    x = x + attended
    return x + feed_forward(rms_norm(x, layer.mlp_norm, config.epsilon), layer), cache


def leave(x: Array, tokens: Array, norm: Array, count: Array | None, config: Config) -> Array:
    """Return the logits of what follows the last token: (S, E) -> (V,)."""
    last = x[-1:, :] if count is None else array_namespace(x).take(x, count - 1, axis=0)  # (S, E) -> (1, E)
    return (rms_norm(last, norm, config.epsilon) @ tokens.T)[0, :]  # (1, E) @ (E, V) -> (1, V) -> (V,)


class Parts(NamedTuple):
    """The functions of which the model consists, as they are or compiled."""

    enter: Callable[..., Any] = enter
    block: Callable[..., Any] = block
    leave: Callable[..., Any] = leave


def forward(
    parts: Parts, weights: Weights, caches: list[Cache], ids: Array, count: Array | None, config: Config
) -> tuple[Array, list[Cache]]:
    """Return the logits of the token after ids, (S,) -> (V,), and the caches of the layers with ids in them.

    Of ids, the first `count`, (1,), are tokens, and the others fill up; all are tokens where it is ``None``.
    """
    x, angles = parts.enter(weights.tokens, ids, lengths(caches[0]), config)
    after = []
    for layer, cache in zip(weights.layers, caches, strict=True):
        x, longer = parts.block(x, layer, cache, angles, count, config)
        after.append(longer)
    return parts.leave(x, weights.tokens, weights.norm, count, config), after
