"""Wrong calls of attention: the type of the error, and a text that names argument, letters and shapes."""

import importlib
import inspect
import re

import pytest

import attention_xp
from attention_xp import scaled_dot_product_attention as sdpa
from attention_xp.biases import AlibiBias
from attention_xp.masks import CausalMask
from tests._wrong import Arrays, Wrong, check

Q, K, V, M = "(..., H, Sq, D)", "(..., Hkv, Sk, D)", "(..., Hkv, Sk, Dv)", "(..., H, Sq, Sk)"


def takes_options(function):
    """Whether a public name is a function that takes the shared options."""
    return inspect.isfunction(function) and "score_mod" in inspect.signature(function).parameters


INPUTS = {
    "key width": Wrong(
        lambda a: sdpa(a(2, 8, 10, 64), a(2, 8, 10, 32), a(2, 8, 10, 32)), ValueError,
        ("key has width 32 but query has width 64: expected key " + K, "got query (2, 8, 10, 64), key (2, 8, 10, 32)"),
    ),
    "key width, no heads": Wrong(
        lambda a: sdpa(a(2, 5, 8), a(2, 5, 4), a(2, 5, 4)), ValueError,
        ("key has width 4 but query has width 8", "(B, Sk, D)", "query (2, 5, 8)", "key (2, 5, 4)"),
    ),
    "value length": Wrong(
        lambda a: sdpa(a(2, 8, 5, 8), a(2, 8, 7, 8), a(2, 8, 6, 8)), ValueError,
        ("value", "key", V, "(2, 8, 7, 8)", "(2, 8, 6, 8)"),
    ),
    "axes of the key": Wrong(
        lambda a: sdpa(a(2, 8, 5, 8), a(8, 5, 8), a(8, 5, 8)), ValueError,
        ("key", "query", K, "(2, 8, 5, 8)", "(8, 5, 8)"),
    ),
    "axes of the value": Wrong(
        lambda a: sdpa(a(2, 5, 8), a(2, 5, 8), a(5, 8)), ValueError, ("value", "(B, Sk, Dv)", "(2, 5, 8)", "(5, 8)")
    ),
    "one axis": Wrong(lambda a: sdpa(a(8), a(8), a(8)), ValueError, ("query", "(Sq, D)", "(8,)")),
    "no axis": Wrong(lambda a: sdpa(a(), a(), a()), ValueError, ("query", "(Sq, D)", "()")),
    "heads do not group": Wrong(
        lambda a: sdpa(a(2, 6, 5, 8), a(2, 4, 5, 8), a(2, 4, 5, 8)), ValueError,
        ("query", "H", "Hkv", "(2, 6, 5, 8)", "(2, 4, 5, 8)"),
    ),
    "fewer heads than keys have": Wrong(
        lambda a: sdpa(a(2, 2, 5, 8), a(2, 4, 5, 8), a(2, 4, 5, 8)), ValueError,
        ("query", "H", "Hkv", "(2, 2, 5, 8)", "(2, 4, 5, 8)"),
    ),
    "heads of the value": Wrong(
        lambda a: sdpa(a(2, 4, 5, 8), a(2, 4, 5, 8), a(2, 2, 5, 8)), ValueError,
        ("value", "key", V, "(2, 4, 5, 8)", "(2, 2, 5, 8)"),
    ),
    "leading axes": Wrong(
        lambda a: sdpa(a(2, 4, 5, 8), a(3, 4, 5, 8), a(3, 4, 5, 8)), ValueError,
        ("query", "key", K, "(2, 4, 5, 8)", "(3, 4, 5, 8)"),
    ),
    "a list": Wrong(lambda a: sdpa([[1.0]], a(1, 1), a(1, 1)), TypeError, ("query", "list")),
    "a key of None": Wrong(lambda a: sdpa(a(1, 1), None, a(1, 1)), TypeError, ("key", "None")),
    "a number": Wrong(lambda a: sdpa(a(1, 1), a(1, 1), 1.0), TypeError, ("value", "float")),
    "an integer query": Wrong(
        lambda a: sdpa(a(5, 8, dtype="int32"), a(5, 8), a(5, 8)), TypeError, ("query", "int32", "float")
    ),
    "a boolean value": Wrong(lambda a: sdpa(a(5, 8), a(5, 8), a(5, 8, dtype="bool")), TypeError, ("value", "bool")),
    "a complex key": Wrong(
        lambda a: sdpa(a(5, 8), a(5, 8, dtype="complex64"), a(5, 8)), TypeError, ("key", "complex64")
    ),
    "two dtypes": Wrong(lambda a: sdpa(a(5, 8), a.other(5, 8), a(5, 8)), TypeError, ("key", "query", "float32")),
    "two libraries": Wrong(lambda a: sdpa(a(5, 8), a.foreign(5, 8), a(5, 8)), TypeError, ("key", "query", "librar")),
    "a foreign mask": Wrong(lambda a: a.attend(mask=a.foreign(5, 5)), TypeError, ("mask", "librar")),
    "a foreign bias": Wrong(lambda a: a.attend(bias=a.foreign(5, 5)), TypeError, ("bias", "librar")),
}  # fmt: skip

OPTIONS = {
    "integer mask": Wrong(lambda a: a.attend(mask=a(5, 5, dtype="int32")), TypeError, ("mask", "int32", "bool", "mask != 0")),
    "list as mask": Wrong(lambda a: a.attend(mask=[[True]]), TypeError, ("mask", "list")),
    "class as mask": Wrong(lambda a: a.attend(mask=CausalMask), TypeError, ("mask", "a rule", "the class CausalMask", "CausalMask(...)")),
    "function as mask": Wrong(lambda a: a.attend(mask=lambda b, h, q, k: q), TypeError, ("mask", "function: FunctionMask makes a rule of it")),
    "bias as mask": Wrong(lambda a: a.attend(mask=AlibiBias(a(4))), TypeError, ("mask", "attention_xp.masks", "AlibiBias, which goes into bias")),
    "mask as bias": Wrong(lambda a: a.attend(bias=CausalMask()), TypeError, ("bias", "attention_xp.biases", "CausalMask, which goes into mask")),
    "mask of each batch item": Wrong(
        lambda a: a.attend(axes=5, mask=a(7, 5, 5)), ValueError, ("mask", M, "(7, 5, 5)"),
    ),
    "mask without a heads axis": Wrong(
        lambda a: a.attend(mask=a(3, 5, 5)), ValueError, ("mask", "(..., 1, Sq, Sk) for all heads alike", "(3, 5, 5)"),
    ),
    "mask does not fit": Wrong(
        lambda a: a.attend(mask=a(2, 4, 5, 6)), ValueError, ("mask", M, "(2, 4, 5, 5)", "(2, 4, 5, 6)")
    ),
    "mask of the wrong batch": Wrong(lambda a: a.attend(mask=a(3, 1, 5, 5)), ValueError, ("mask", M, "(3, 1, 5, 5)")),
    "mask that enlarges": Wrong(
        lambda a: sdpa(a(1, 4, 5, 8), a(1, 4, 5, 8), a(1, 4, 5, 8), a(2, 1, 5, 5)), ValueError,
        ("mask", M, "(2, 1, 5, 5)", "(1, 4, 5, 5)"),
    ),
    "surplus axis with an extent": Wrong(
        lambda a: a.attend(mask=a(3, 2, 1, 5, 5)), ValueError, ("mask", M, "(3, 2, 1, 5, 5)")
    ),
    "mask with heads, input without": Wrong(
        lambda a: a.attend(axes=3, mask=a(2, 4, 5, 5)), ValueError, ("mask", "Sq, Sk)", "(2, 4, 5, 5)", "(2, 5, 5)")
    ),
    "integer bias": Wrong(lambda a: a.attend(bias=a(5, 5, dtype="int32")), TypeError, ("bias", "int32")),
    "boolean bias": Wrong(lambda a: a.attend(bias=a(5, 5, dtype="bool")), TypeError, ("bias", "bool: what excludes pairs goes into mask")),
    "number as bias": Wrong(lambda a: a.attend(bias=1.0), TypeError, ("bias", "float")),
    "bias does not fit": Wrong(
        lambda a: a.attend(bias=a(3, 5, 5)), ValueError, ("bias", M, "(2, 4, 5, 5)", "(3, 5, 5)")
    ),
    "causal without an offset": Wrong(
        lambda a: a.attend(keys=7, is_causal=True), ValueError,
        ("query_offset", "0", "Sk - Sq", "(2, 4, 5, 8)", "(2, 4, 7, 8)"),
    ),
    "window without an offset": Wrong(
        lambda a: a.attend(keys=7, window=2), ValueError, ("query_offset", "0", "Sk - Sq", "(2, 4, 7, 8)")
    ),
    "is_causal of the wrong kind": Wrong(lambda a: a.attend(is_causal="yes"), TypeError, ("is_causal", "str")),
    "negative window": Wrong(lambda a: a.attend(window=-1), ValueError, ("window", "negative", "-1")),
    "negative side of a window": Wrong(lambda a: a.attend(window=(2, -1)), ValueError, ("window", "negative", "-1")),
    "fractional window": Wrong(lambda a: a.attend(window=1.5), TypeError, ("window", "int", "float")),
    "three-sided window": Wrong(lambda a: a.attend(window=(1, 1, 1)), ValueError, ("window", "(left, right)")),
    "fractional offset": Wrong(lambda a: a.attend(query_offset=1.5), TypeError, ("query_offset", "int", "float")),
    "floating offsets": Wrong(lambda a: a.attend(query_offset=a(2)), TypeError, ("query_offset", "int", "float32")),
    "offsets of the wrong batch": Wrong(
        lambda a: a.attend(query_offset=a(3, dtype="int32")), ValueError, ("query_offset", "batch", "(2,)", "(3,)")
    ),
    "offset of each row": Wrong(
        lambda a: a.attend(query_offset=a(5, dtype="int32")), ValueError,
        ("query_offset", "(2,)", "(5,)", "rows at positions of their own are batch items, query (Sq, H, 1, D)"),
    ),
    "floating lengths": Wrong(lambda a: a.attend(key_lengths=a(2)), TypeError, ("key_lengths", "int", "float32")),
    "lengths of the wrong batch": Wrong(
        lambda a: a.attend(key_lengths=a(3, dtype="int32")), ValueError, ("key_lengths", "batch", "(2,)", "(3,)")
    ),
    "lengths with a heads axis": Wrong(
        lambda a: a.attend(query_lengths=a(2, 4, dtype="int32")), ValueError, ("query_lengths", "(2,)", "(2, 4)")
    ),
    "offset and positions of keys": Wrong(
        lambda a: a.attend(key_offset=1, key_positions=a(5, dtype="int32")), ValueError, ("key_offset", "key_positions")
    ),
    "positions of too few keys": Wrong(
        lambda a: a.attend(key_positions=a(4, dtype="int32")), ValueError, ("key_positions", "(Sk,)", "(2, 5)", "(4,)")
    ),
    "floating positions": Wrong(
        lambda a: a.attend(key_positions=a(5)), TypeError, ("key_positions", "integer array", "float32")
    ),
    "a piece of keys without the place of the rows": Wrong(
        lambda a: a.attend(is_causal=True, key_offset=3), ValueError, ("query_offset", "key_offset", "whole")
    ),
    "numbers of too many items": Wrong(
        lambda a: a.attend(item_ids=a(3, dtype="int32")), ValueError, ("item_ids", "batch", "(2,)", "(3,)")
    ),
    "numbers of too few heads": Wrong(
        lambda a: a.attend(head_ids=a(2, dtype="int32")), ValueError, ("head_ids", "(H,)", "(4,)", "(2,)")
    ),
    "list of head numbers": Wrong(lambda a: a.attend(head_ids=[0, 1]), TypeError, ("head_ids", "integer array", "list")),
    "one number for all heads": Wrong(
        lambda a: a.attend(head_ids=3), TypeError, ("head_ids", "integer array (H,) = (4,)", "int")
    ),
    "list of lengths": Wrong(lambda a: a.attend(query_lengths=[1, 2]), TypeError, ("query_lengths", "int", "list")),
    "negative length": Wrong(lambda a: a.attend(key_lengths=-1), ValueError, ("key_lengths", "-1")),
    "scale of the wrong kind": Wrong(lambda a: a.attend(scale="big"), TypeError, ("scale", "str")),
    "integer array as scale": Wrong(lambda a: a.attend(scale=a(dtype="int32")), TypeError, ("scale", "int32", "floating")),
    "boolean array as scale": Wrong(lambda a: a.attend(scale=a(dtype="bool")), TypeError, ("scale", "bool", "floating")),
    "scale of another library": Wrong(lambda a: a.attend(scale=a.foreign()), TypeError, ("scale", "query")),
    "a scale for each head": Wrong(
        lambda a: a.attend(scale=a(4)), ValueError, ("scale", "a float or scale ()", "got scale (4,)")
    ),
    "soft cap of zero": Wrong(lambda a: a.attend(softcap=0.0), ValueError, ("softcap", "positive", "0.0")),
    "soft cap beyond the dtype": Wrong(lambda a: a.attend(softcap=1e39), ValueError, ("softcap", "float32 can hold", "1e+39")),
    "soft cap too small for the dtype": Wrong(lambda a: a.attend(softcap=1e-40), ValueError, ("softcap", "float32 can hold")),
    "scale beyond the dtype": Wrong(lambda a: a.attend(scale=-1e39), ValueError, ("scale", "float32 can hold", "-1e+39")),
    "negative soft cap": Wrong(lambda a: a.attend(softcap=-2), ValueError, ("softcap", "positive", "-2")),
    "soft cap of the wrong kind": Wrong(lambda a: a.attend(softcap="x"), TypeError, ("softcap", "str")),
    "score_mod of the wrong kind": Wrong(
        lambda a: a.attend(score_mod=1), TypeError, ("score_mod", "(score, b, h, q_idx, kv_idx)", "int")
    ),
    "sinks for the wrong heads": Wrong(lambda a: a.attend(sinks=a(3)), ValueError, ("sinks", "(H,)", "(4,)", "(3,)")),
    "sinks of two axes": Wrong(lambda a: a.attend(sinks=a(2, 4)), ValueError, ("sinks", "(H,)", "(2, 4)")),
    "sinks without heads": Wrong(lambda a: a.attend(axes=3, sinks=a(4)), ValueError, ("sinks", "()", "(4,)")),
    "integer sinks": Wrong(lambda a: a.attend(sinks=a(4, dtype="int32")), TypeError, ("sinks", "int32")),
    "list of sinks": Wrong(lambda a: a.attend(sinks=[1.0] * 4), TypeError, ("sinks", "list")),
    "rate of one": Wrong(lambda a: a.attend(dropout_rate=1.0, rng=0), ValueError, ("dropout_rate", "< 1", "1.0")),
    "negative rate": Wrong(lambda a: a.attend(dropout_rate=-0.1, rng=0), ValueError, ("dropout_rate", "-0.1")),
    "rate of the wrong kind": Wrong(lambda a: a.attend(dropout_rate="half"), TypeError, ("dropout_rate", "str")),
    "negative seed": Wrong(lambda a: a.attend(dropout_rate=0.5, rng=-1), ValueError, ("rng", "2**64", "-1")),
    "seed too large": Wrong(lambda a: a.attend(dropout_rate=0.5, rng=2**64), ValueError, ("rng", "2**64")),
    "fractional seed": Wrong(lambda a: a.attend(dropout_rate=0.5, rng=0.5), TypeError, ("rng", "float")),
    "unknown implementation": Wrong(
        lambda a: a.attend(impl="fast"), ValueError, ("impl", "fast", "auto", "dense", "tiled", "fused")
    ),
    "implementation of the wrong kind": Wrong(lambda a: a.attend(impl=1), TypeError, ("impl", "str", "int")),
    "fused with weights": Wrong(lambda a: a.attend(impl="fused", function=sdpa), ValueError, ("fused",)),
    "tile of zero": Wrong(lambda a: a.attend(tile=(0, 4)), ValueError, ("tile", "(0, 4)")),
    "tile of one number": Wrong(lambda a: a.attend(tile=64), TypeError, ("tile", "64")),
    "scale that is no float": Wrong(lambda a: a.attend(scale=10**400), ValueError, ("scale", "finite")),
    "array as window": Wrong(lambda a: a.attend(window=a(2)), TypeError, ("window", "(left, right)")),
    "offset too far away": Wrong(lambda a: a.attend(query_offset=2**31), ValueError, ("query_offset", "2**29", str(2**31))),
    "score_mod that makes nothing": Wrong(
        lambda a: a.attend(score_mod=lambda *_: None), TypeError, ("score_mod", "floating", "NoneType")
    ),
    "score_mod that answers": Wrong(lambda a: a.attend(score_mod=lambda s, *_: s > 0), TypeError, ("score_mod", "bool")),
    "score_mod that makes more": Wrong(
        lambda a: a.attend(score_mod=lambda s, *_: s[None, ...]), ValueError, ("score_mod", "broadcast")
    ),
    "weights on a word": Wrong(
        lambda a: a.attend(function=sdpa, return_weights="no"), TypeError, ("return_weights", "bool", "str")
    ),
    "number as return_lse": Wrong(lambda a: a.attend(return_lse=1), TypeError, ("return_lse", "bool", "int")),
    "unknown option": Wrong(lambda a: a.attend(windows=2), TypeError, ("flash_attention has no argument 'windows'", "'window'?", "takes query, key, value, mask,", "return_lse, output_dtype, bias", "tile")),
}  # fmt: skip

# What other libraries call an argument, and what an error answers.
MEANT = {
    "attn_mask": "(did you mean 'mask'?)",
    "dropout_p": "(did you mean 'dropout_rate'?)",
    "causal": "(did you mean 'is_causal'?)",
    "need_weights": "(did you mean 'return_weights' of scaled_dot_product_attention?)",
    "key_padding_mask": "(did you mean key_lengths, or mask=mask[:, None, None, :] of a (B, Sk) array, True = may attend?)",
    "enable_gqa": "(not needed: fewer heads of key and value than of query are grouped)",
    "alibi_slopes": "(did you mean bias=attention_xp.biases.AlibiBias(alibi_slopes)?)",
    "temperature": "(did you mean scale=1 / temperature, in the place of the default 1 / sqrt(D)?)",
    "sclae": "(did you mean 'scale'?)",
    "zeta": "'zeta': it takes query",
}
OPTIONS |= {
    name: Wrong(lambda a, name=name: a.attend(**{name: None}), TypeError, (name, answer)) for name, answer in MEANT.items()
} | {
    "weights that are needed": Wrong(
        lambda a: a.attend(function=sdpa, need_weights=True), TypeError, ("scaled_dot", "(did you mean 'return_weights'?)")
    ),
    "padding mask": Wrong(
        lambda a: a.attend(mask=a(2, 7, dtype="bool"), keys=7), ValueError,
        ("mask", M, "a padding mask (B, Sk) as mask[:, None, None, :] or as key_lengths", "(2, 7)"),
    ),
    "padding mask without heads": Wrong(
        lambda a: a.attend(axes=3, mask=a(2, 5, dtype="bool")), ValueError, ("mask", "(B, Sk) as mask[:, None, :]", "(2, 5)")
    ),
}  # fmt: skip

WRONG = INPUTS | OPTIONS


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_call(library, wrong):
    check(wrong, library)


@pytest.mark.parametrize("name", [n for n in attention_xp.__all__ if takes_options(getattr(attention_xp, n))])
def test_every_function_names_itself_and_its_own_arguments(library, name):
    function = getattr(attention_xp, name)
    taken = inspect.signature(function).parameters
    required = [a for a, p in taken.items() if p.default is p.empty]
    with pytest.raises(
        TypeError, match=rf"{function.__name__} has no argument 'casual' .*: it takes {', '.join(taken)}$"
    ):
        function(*[None] * len(required), casual=True)


@pytest.mark.backends("jax")
@pytest.mark.parametrize(
    ("name", "value", "kind", "way"),
    [
        ("is_causal", True, "a bool", "static_argnames='is_causal'"),
        ("dropout_rate", 0.5, "a real number", "static_argnames='dropout_rate'"),
        ("window", 3, "of int or None", "static_argnames='window'"),
        ("rng", 3, "a JAX key", "jax.random.key(seed)"),
    ],
)
def test_what_must_not_be_traced_says_how_to_give_it(library, name, value, kind, way):
    jax, arrays = importlib.import_module("jax"), Arrays(library)
    with pytest.raises(TypeError, match=f"{name} must be .*{kind}, got .*{re.escape(way)}"):
        jax.jit(lambda given: arrays.attend(**{"dropout_rate": 0.5, "rng": 0, name: given}))(value)
