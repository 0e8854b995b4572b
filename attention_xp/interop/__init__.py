"""Attention in other people's code: their function, their arguments and layout, computed here.

Each module is named after the framework that it speaks for, and imports it: `attention_xp.interop.torch`,
`attention_xp.interop.transformers` and so on; only `attention_xp.interop.onnx` has no need of that. A function has the
signature of the original to the letter, translates its arguments and returns what the original returns; what cannot be
honoured raises `NotImplementedError`, which names the argument.
"""

__all__: list[str] = []
