"""Attention in other people's code: their function, their arguments and layout, computed here.

Each module is named after the framework that it speaks for, and imports it: `attention_xp.interop.torch`,
`attention_xp.interop.transformers` and so on; only `attention_xp.interop.onnx` has no need of that. A function has the
signature of the original to the letter, translates its arguments and returns what the original returns; what cannot be
honoured raises `NotImplementedError`, which names the argument.
"""

from importlib import import_module as _import_module
from types import ModuleType as _ModuleType

__all__: list[str] = []

_MODULES = ("flash_attn", "flax", "jax", "keras", "onnx", "torch", "transformers")


def __getattr__(name: str) -> _ModuleType:
    """Load a module when it is first used, so that ``import attention_xp`` suffices."""
    if name in _MODULES:
        return _import_module(f"attention_xp.interop.{name}")
    raise AttributeError(f"module 'attention_xp.interop' has no attribute {name!r}: it has {', '.join(_MODULES)}")
