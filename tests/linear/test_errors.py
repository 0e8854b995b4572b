"""Wrong calls of linear attention: the type of the error, and a text that says what was expected."""

import numpy as np
import pytest

from attention_xp.linear import LinearState, linear_attention
from tests._wrong import Wrong, check

NO_MAP = {"feature_map": None}


def call(a, **options):
    """Call with good inputs, 4 heads on 2, and the given options."""
    return linear_attention(a(3, 4, 5, 8), a(3, 2, 5, 8), a(3, 2, 5, 6), **options)


def with_state(a, *shapes, **options):
    """Call with a state of these shapes."""
    return call(a, state=LinearState(*(a(*shape) for shape in shapes)), **options)


CALLS = {
    "no such rule": Wrong(lambda a: call(a, update_rule="gate"), ValueError, ("update_rule", "gated_delta", "'gate'")),
    "rule of another kind": Wrong(lambda a: call(a, update_rule=None), TypeError, ("update_rule", "str", "NoneType")),
    "no decay": Wrong(
        lambda a: call(a, update_rule="gated"), ValueError, ("decay is required", "'gated'", "(..., Hkv, S, 1)")
    ),
    "no beta": Wrong(lambda a: call(a, update_rule="delta"), ValueError, ("beta is required", "(..., Hkv, S, 1)")),
    "gated_delta without beta": Wrong(
        lambda a: call(a, update_rule="gated_delta", decay=a(3, 2, 5, 1)), ValueError, ("beta is required",)
    ),
    "decay has no place": Wrong(
        lambda a: call(a, decay=a(3, 2, 5, 1)), ValueError, ("decay", "'linear'", "'gated' or 'gated_delta'")
    ),
    "beta has no place": Wrong(
        lambda a: call(a, update_rule="gated", decay=a(1), beta=a(3, 2, 5, 1)), ValueError,
        ("beta", "'gated'", "'delta' or 'gated_delta'"),
    ),
    "width of the decay": Wrong(
        lambda a: call(a, update_rule="gated", decay=a(3, 2, 5, 4)), ValueError,
        ("decay", "(..., Hkv, S, 1 or D) = (3, 2, 5, 1) or (3, 2, 5, 8)", "decay (3, 2, 5, 4)", "key (3, 2, 5, 8)"),
    ),
    "decay by query heads": Wrong(
        lambda a: call(a, update_rule="gated", decay=a(3, 4, 5, 1)), ValueError, ("decay", "Hkv", "(3, 4, 5, 1)")
    ),
    "decay that enlarges": Wrong(
        lambda a: call(a, update_rule="gated", decay=a(2, 3, 2, 5, 1)), ValueError, ("decay", "(2, 3, 2, 5, 1)")
    ),
    "length of beta": Wrong(
        lambda a: call(a, update_rule="delta", beta=a(3, 2, 4, 1)), ValueError,
        ("beta", "(..., Hkv, S, 1) = (3, 2, 5, 1)", "beta (3, 2, 4, 1)"),
    ),
    "beta without its last axis": Wrong(
        lambda a: call(a, update_rule="delta", beta=a(3, 2, 5)), ValueError, ("beta", "(3, 2, 5)")
    ),
    "beta without heads": Wrong(
        lambda a: linear_attention(a(3, 5, 8), a(3, 5, 8), a(3, 5, 8), update_rule="delta", beta=a(3, 4, 1)),
        ValueError, ("beta (..., S, 1) = (3, 5, 1)",),
    ),
    "integer decay": Wrong(
        lambda a: call(a, update_rule="gated", decay=a(5, 1, dtype="int32")), TypeError, ("decay", "int32", "floating")
    ),
    "foreign decay": Wrong(
        lambda a: call(a, update_rule="gated", decay=a.foreign(5, 1)), TypeError, ("decay", "library")
    ),
    "list as beta": Wrong(lambda a: call(a, update_rule="delta", beta=[1.0]), TypeError, ("beta", "list")),
    "tuple as state": Wrong(lambda a: call(a, state=(a(8, 6), None)), TypeError, ("state", "LinearState", "tuple")),
    "memory of None": Wrong(lambda a: call(a, state=LinearState(None)), TypeError, ("state.memory", "None")),
    "shape of the memory": Wrong(
        lambda a: with_state(a, (3, 2, 6, 8), **NO_MAP), ValueError,
        ("state.memory", "(..., Hkv, D, Dv) = (3, 2, 8, 6)", "(3, 2, 6, 8)"),
    ),
    "memory of one channel": Wrong(lambda a: with_state(a, (3, 2, 1, 6), **NO_MAP), ValueError, ("(3, 2, 1, 6)",)),
    "no normalizer": Wrong(
        lambda a: with_state(a, (3, 2, 8, 6)), ValueError, ("state.normalizer", "(..., Hkv, D)", "normalize=False")
    ),
    "shape of the normalizer": Wrong(
        lambda a: with_state(a, (3, 2, 8, 6), (3, 2, 6)), ValueError,
        ("state.normalizer", "(..., Hkv, D) = (3, 2, 8)", "(3, 2, 6)"),
    ),
    "causal lengths": Wrong(
        lambda a: linear_attention(a(5, 8), a(7, 8), a(7, 8), is_causal=True), ValueError,
        ("key has length 7 but query has length 5", "causal", "(5, 8)", "(7, 8)"),
    ),
    "lengths of a rule with order": Wrong(
        lambda a: linear_attention(a(5, 8), a(7, 8), a(7, 8), update_rule="delta", beta=a(7, 1)), ValueError,
        ("key has length 7", "a rule other than 'linear'"),
    ),
    "no such map": Wrong(lambda a: call(a, feature_map="gelu"), ValueError, ("feature_map", "elu, relu", "'gelu'")),
    "no map at all": Wrong(lambda a: call(a, feature_map=3), TypeError, ("feature_map", "callable", "int")),
    "map that loses an axis": Wrong(
        lambda a: call(a, feature_map=lambda x: x[..., 0]), ValueError,
        ("feature_map", "(3, 4, 5, D)", "feature_map(query) (3, 4, 5)"),
    ),
    "map of two widths": Wrong(
        lambda a: call(a, feature_map=lambda x: x[..., : x.shape[-3]]), ValueError,
        ("feature_map", "equally wide", "(3, 4, 5, 4)", "(3, 2, 5, 2)"),
    ),
    "map to integers": Wrong(
        lambda a: call(a, feature_map=lambda x: a(3, 4, 5, 8, dtype="int32")), TypeError, ("feature_map", "int32")
    ),
    "decay of the width before the map": Wrong(
        lambda a: call(a, feature_map=lambda x: x[..., :3], update_rule="gated", decay=a(3, 2, 5, 8)), ValueError,
        ("decay", "(3, 2, 5, 3)", "(3, 2, 5, 8)"),
    ),
    "chunk size 0": Wrong(lambda a: call(a, chunk_size=0), ValueError, ("chunk_size", "1", "0")),
    "chunk size 64.0": Wrong(lambda a: call(a, chunk_size=64.0), TypeError, ("chunk_size", "int", "float")),
    "no such impl": Wrong(lambda a: call(a, impl="tiled"), ValueError, ("impl", "recurrent, chunked", "'tiled'")),
    "impl of another kind": Wrong(lambda a: call(a, impl=1), TypeError, ("impl", "str", "int")),
    "scale": Wrong(lambda a: call(a, scale="1"), TypeError, ("scale", "str")),
    "infinite scale": Wrong(lambda a: call(a, scale=float("inf")), ValueError, ("scale", "finite")),
    "normalize": Wrong(lambda a: call(a, normalize=1), TypeError, ("normalize", "bool", "int")),
    "is_causal": Wrong(lambda a: call(a, is_causal=1), TypeError, ("is_causal", "bool", "int")),
    "return_state": Wrong(lambda a: call(a, return_state=1), TypeError, ("return_state", "bool", "int")),
    "heads": Wrong(
        lambda a: linear_attention(a(3, 3, 5, 8), a(3, 2, 5, 8), a(3, 2, 5, 8)), ValueError, ("H", "Hkv", "(3, 3, 5, 8)")
    ),
    "widths": Wrong(lambda a: linear_attention(a(5, 8), a(5, 4), a(5, 4)), ValueError, ("key has width 4",)),
    "integer query": Wrong(
        lambda a: linear_attention(a(5, 8, dtype="int32"), a(5, 8), a(5, 8)), TypeError, ("query", "int32")
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", CALLS.values(), ids=CALLS)
def test_wrong_calls(library, wrong):
    check(wrong, library)


@pytest.mark.backends("strict")
def test_devices_must_agree(library):
    xp = library.namespace()
    here, there = (xp.asarray(np.ones((5, 8), np.float32), device=xp.Device(d)) for d in ("device1", "CPU_DEVICE"))
    with pytest.raises(ValueError, match="decay is on"):
        linear_attention(here, here, here, update_rule="gated", decay=there)
