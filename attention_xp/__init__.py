"""Attention mechanisms as plain functions on any array: NumPy, CuPy, PyTorch and JAX.

A module is loaded when a name of it is first used, so that the import of the package takes no time;
`__init__.pyi` tells type checkers what is here.
"""

import sys as _sys
from importlib import import_module as _import_module

__version__ = "0.1.0"

_MODULES = {
    "_alibi": ("alibi_slopes",),
    "_attention": ("flash_attention", "scaled_dot_product_attention"),
    "_attention_scores": ("attention_scores",),
    "_gradients": ("attention_gradients",),
    "_explain": ("Explanation", "explain"),
    "masks._arrays": ("create_causal_mask", "create_look_ahead_mask", "create_padding_mask"),
    "_merge": ("merge_attention",),
    "_multi_head": ("multi_head_attention", "multi_head_self_attention"),
    "_multi_head_params": ("MultiHeadParams", "init_multi_head_params"),
    "_normalization": ("layer_normalization",),
    "_progress": ("progress",),
    "_positional": ("learned_positional_encoding", "positional_encoding"),
    "_random.draws": ("dropout",),
    "_rotary.embedding": ("rotary_embedding",),
    "_rotary.axial": ("axial_rotary_embedding",),
    "_rotary.cache": ("RotaryCache", "rotary_cache"),
    "_rotary.long": ("Llama3Scaling", "LongRopeScaling", "YarnScaling"),
    "_rotary.scaling": ("DynamicNTKScaling", "LinearScaling", "NTKScaling"),
    "_rotary.weights": ("permute_rotary_weights",),
    "_self_attention": ("cross_attention", "self_attention"),
    "_softmax": ("softmax",),
    "_statistics": ("AttentionStatistics", "attention_statistics"),
    "_varlen": ("varlen_attention",),
    "_vjp": ("AttentionGradients", "attention_vjp"),
    "_visualization": ("attention_score_visualization",),
}
_SHORT_NAMES = {
    "sdp_attention": "scaled_dot_product_attention",
    "mha": "multi_head_attention",
    "self_attn": "self_attention",
    "cross_attn": "cross_attention",
    "pos_encoding": "positional_encoding",
    "causal_mask": "create_causal_mask",
    "padding_mask": "create_padding_mask",
}
_SUBMODULES = frozenset({"biases", "cache", "distributed", "interop", "linear", "masks", "viz"})
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted((*_HOMES, *_SHORT_NAMES, *_SUBMODULES, "__version__"))  # noqa: PLE0605  # spelt out in the stub


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return _import_module(f"attention_xp.{name}")
    full = _SHORT_NAMES.get(name, name)
    if full not in _HOMES:
        raise _no_such_name(name)
    value = globals()[name] = getattr(_import_module(f"attention_xp.{_HOMES[full]}"), full)
    return value


def _no_such_name(name: str) -> Exception:
    """Return the complaint about a name, which says in which submodule it is.

    ``from attention_xp import name`` replaces an `AttributeError` by an error with a text of its own, and lets an
    `ImportError` through.
    """
    text = f"module 'attention_xp' has no attribute {name!r}"
    homes = [] if name.startswith("_") else sorted(m for m in _SUBMODULES if name in _names_of(m))
    if not homes:
        return AttributeError(text, name=name, obj=_sys.modules[__name__])
    text += f"; it is in attention_xp.{homes[0]}: from attention_xp.{homes[0]} import {name}"
    is_import = _sys._getframe(2).f_globals.get("__name__") == "importlib._bootstrap"
    return ImportError(text, name=__name__) if is_import else AttributeError(text)


def _names_of(submodule: str) -> list[str]:
    return _import_module(f"attention_xp.{submodule}").__all__  # type: ignore[no-any-return]


def __dir__() -> list[str]:
    return list(__all__)
