"""Wrong calls of the functions around attention: the type of the error, and what its text names."""

import pytest

import attention_xp as ax
from attention_xp import cross_attention, multi_head_attention, self_attention
from tests._wrong import EITHER, Wrong, check

HEADS = {
    "self-attention of another width": Wrong(
        lambda a: self_attention(a(2, 5, 8), 16), ValueError, ("x", "d_model", "8", "16", "(2, 5, 8)")
    ),
    "fractional d_model": Wrong(lambda a: self_attention(a(2, 5, 8), 8.0), TypeError, ("d_model", "int", "float")),
    "query of another width": Wrong(
        lambda a: cross_attention(a(2, 5, 8), a(2, 5, 16), 16), ValueError, ("query", "d_model", "(2, 5, 8)")
    ),
    "context of another width": Wrong(
        lambda a: cross_attention(a(2, 5, 16), a(2, 7, 8), 16), ValueError, ("context", "d_model", "(2, 7, 8)")
    ),
    "list as context": Wrong(lambda a: cross_attention(a(1, 1), [[1.0]], 1), TypeError, ("context", "list")),
    "list as x": Wrong(lambda a: self_attention([[1.0]], 1), TypeError, ("x ", "list")),
    "width not divisible by heads": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 512)] * 3, 7, 512), ValueError,
        ("d_model", "divisible", "num_heads", "512", "7"),
    ),
    "no heads": Wrong(lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 0, 8), ValueError, ("num_heads", "0")),
    "fractional heads": Wrong(lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 2.0, 8), TypeError, ("num_heads", "float")),
    "heads not divisible by key heads": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 4, 8, num_kv_heads=3), ValueError,
        ("num_heads", "num_kv_heads", "divisible", "4", "3"),
    ),
    "width of the query": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 16)] * 3, 4, 8), ValueError, ("query", "d_model", "(2, 5, 16)")
    ),
    "wide keys in spite of grouped heads": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 4, 8, num_kv_heads=2), ValueError,
        ("key", "num_kv_heads", "4", "(2, 5, 8)"),
    ),
    "params of the wrong kind": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 4, 8, params=[a(8, 8)] * 4), TypeError,
        ("params", "MultiHeadParams", "list"),
    ),
    "params of the wrong shape": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 4, 8, params=ax.MultiHeadParams(*[a(8, 4)] * 4)), ValueError,
        ("w_o", "(H * Dv, any) = (4, 4)", "(8, 4)"),
    ),
    "params of another query": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 4, 6, params=ax.MultiHeadParams(*[a(8, 8)] * 4)), ValueError,
        ("query has width 8 but d_model is 6", "(2, 5, 8)"),
    ),
    "params of half heads": Wrong(
        lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, 4, 8, params=ax.MultiHeadParams(*[a(8, 6)] * 4)), ValueError,
        ("w_q", "divisible by num_heads = 4", "(8, 6)"),
    ),
    "params of half values": Wrong(
        lambda a: multi_head_attention(
            *[a(2, 5, 8)] * 3, 4, 8, params=ax.MultiHeadParams(a(8, 8), a(8, 4), a(8, 3), a(8, 8)), num_kv_heads=2
        ), ValueError,
        ("w_v", "divisible by num_kv_heads = 2", "(8, 3)"),
    ),
    "params of other keys": Wrong(
        lambda a: multi_head_attention(
            a(2, 5, 8), a(2, 5, 6), a(2, 5, 8), 4, 8, params=ax.MultiHeadParams(*[a(8, 8)] * 4)
        ), ValueError,
        ("w_k", "(key width, Hkv * D) = (6, 8)", "(8, 8)"),
    ),
    "integers as x": Wrong(lambda a: self_attention(a(2, 5, 8, dtype="int32"), 8), TypeError, ("x must", "int32")),
    "integers as x of heads": Wrong(
        lambda a: ax.multi_head_self_attention(a(2, 5, 8, dtype="int32"), 4, 8), TypeError, ("x must", "int32")
    ),
    "context of another dtype": Wrong(
        lambda a: cross_attention(a(2, 5, 8), a.other(2, 7, 8), 8), TypeError, ("context is", "query is float32")
    ),
    "array of heads": Wrong(lambda a: multi_head_attention(*[a(2, 5, 8)] * 3, a(3), 8), TypeError, ("num_heads", "int")),
    "biases on a word": Wrong(
        lambda a: ax.init_multi_head_params(8, 4, rng=0, xp=a.xp, bias="zero"), TypeError, ("bias", "bool", "str")
    ),
    "initial params": Wrong(
        lambda a: ax.init_multi_head_params(10, 4, rng=0, xp=a.xp), ValueError, ("d_model", "divisible", "num_heads")
    ),
}  # fmt: skip

UTILITIES = {
    "padding mask of one axis": Wrong(
        lambda a: ax.create_padding_mask(a(5, dtype="int32")), ValueError, ("seq", "(B, S)", "(5,)")
    ),
    "padding mask of a list": Wrong(lambda a: ax.create_padding_mask([[1, 0]]), TypeError, ("seq", "list")),
    "padding mask of a kind": Wrong(
        lambda a: ax.create_padding_mask(a(2, 5, dtype="int32"), dtype="int32"), EITHER, ("dtype", "int32")
    ),
    "negative causal mask": Wrong(lambda a: ax.create_causal_mask(-1, xp=a.xp), ValueError, ("seq_len", "-1")),
    "fractional causal mask": Wrong(lambda a: ax.create_causal_mask(2.0, xp=a.xp), TypeError, ("seq_len", "float")),
    "unknown dtype": Wrong(lambda a: ax.create_causal_mask(2, xp=a.xp, dtype="half"), EITHER, ("dtype", "half")),
    "xp of the wrong kind": Wrong(lambda a: ax.create_causal_mask(2, xp="numpy"), TypeError, ("xp", "numpy")),
    "negative positions": Wrong(lambda a: ax.positional_encoding(-1, 4, xp=a.xp), ValueError, ("seq_len", "-1")),
    "fractional width": Wrong(lambda a: ax.positional_encoding(2, 4.0, xp=a.xp), TypeError, ("d_model", "float")),
    "base of zero": Wrong(lambda a: ax.positional_encoding(2, 4, 0, xp=a.xp), ValueError, ("n ", "positive")),
    "positions that are no numbers": Wrong(
        lambda a: ax.positional_encoding(2, 4, xp=a.xp, dtype="bool"), EITHER, ("dtype", "bool")
    ),
    "negative learned positions": Wrong(
        lambda a: ax.learned_positional_encoding(2, -4, rng=0, xp=a.xp), ValueError, ("d_model", "-4")
    ),
    "softmax of integers": Wrong(lambda a: ax.softmax(a(3, dtype="int32")), TypeError, ("x ", "int32")),
    "softmax of a list": Wrong(lambda a: ax.softmax([1.0]), TypeError, ("x ", "list")),
    "softmax along no axis": Wrong(lambda a: ax.softmax(a(2, 3), axis=2), ValueError, ("axis", "2", "(2, 3)")),
    "softmax along no axis from the end": Wrong(lambda a: ax.softmax(a(2, 3), axis=-3), ValueError, ("axis", "-3")),
    "dropout rate of one": Wrong(lambda a: ax.dropout(a(3), 1.0, rng=0), ValueError, ("rate", "< 1", "1.0")),
    "dropout of integers": Wrong(lambda a: ax.dropout(a(3, dtype="int32"), 0.5, rng=0), TypeError, ("x ", "int32")),
    "gamma of another width": Wrong(
        lambda a: ax.layer_normalization(a(2, 8), a(4), a(8)), ValueError, ("gamma", "(D,)", "(2, 8)", "(4,)")
    ),
    "beta of two axes": Wrong(
        lambda a: ax.layer_normalization(a(2, 8), a(8), a(1, 8)), ValueError, ("beta", "(D,)", "(1, 8)")
    ),
    "negative epsilon": Wrong(
        lambda a: ax.layer_normalization(a(2, 8), a(8), a(8), -1.0), ValueError, ("epsilon", "negative", "-1.0")
    ),
    "normalisation of integers": Wrong(
        lambda a: ax.layer_normalization(a(2, 8, dtype="int32"), a(8), a(8)), TypeError, ("x ", "int32")
    ),
    "nothing to merge": Wrong(lambda a: ax.merge_attention(None, [a(5)]), TypeError, ("outputs", "sequence", "None")),
    "array that asks for causal order": Wrong(
        lambda a: ax.varlen_attention(*[a(5, 2, 8)] * 3, a(2, dtype="int32"), is_causal=a(2)), TypeError,
        ("is_causal", "bool"),
    ),
    "unknown option for no sequence": Wrong(
        lambda a: ax.varlen_attention(*[a(5, 2, 8)] * 3, a.library.array([0]), windows=2), TypeError, ("windows",)
    ),
    "mask of far positions": Wrong(
        lambda a: ax.masks.CausalMask().to_array(2, 2, 2**31, xp=a.xp), ValueError, ("query_offset", "2**29")
    ),
    "picture of one axis": Wrong(
        lambda a: ax.attention_score_visualization(a(5)), ValueError,
        ("attention_weights must have 2 to 4 axes", "Sq, Sk)", "(5,)"),
    ),
    "picture of a list": Wrong(
        lambda a: ax.attention_score_visualization([[1.0]]), TypeError, ("attention_weights", "list")
    ),
}  # fmt: skip

WRONG = HEADS | UTILITIES


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_call(library, wrong):
    check(wrong, library)
