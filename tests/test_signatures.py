"""The signatures that users rely on: names, order, defaults, and what is keyword-only."""

import inspect
from dataclasses import dataclass

import pytest

import attention_xp
import attention_xp.biases
import attention_xp.masks

OPTIONS = {
    "bias": None,
    "is_causal": False,
    "window": None,
    "query_offset": None,
    "key_offset": None,
    "key_positions": None,
    "item_ids": None,
    "head_ids": None,
    "query_lengths": None,
    "key_lengths": None,
    "scale": None,
    "softcap": None,
    "score_mod": None,
    "sinks": None,
    "rng": None,
    "impl": "auto",
    "tile": None,
}
SCORES = {n: default for n, default in OPTIONS.items() if n not in ("sinks", "rng", "impl", "tile")}
PACKED = {n: default for n, default in OPTIONS.items() if n not in ("query_lengths", "key_lengths")}
MASK = {"mask": None, "dropout_rate": 0.0}
WEIGHTS = {"return_weights": True}
HEADS = {"params": None, "num_kv_heads": None} | WEIGHTS
WHERE = {"xp": None, "dtype": None, "device": None, "like": None}
ROTARY = {"base": 10000.0, "rotary_dim": None, "interleaved": False, "scaling": None}
REQUIRED = inspect.Parameter.empty

SIGNATURES = {
    "scaled_dot_product_attention": (["query", "key", "value"], MASK, WEIGHTS | OPTIONS),
    "flash_attention": (["query", "key", "value"], MASK, {"return_lse": False, "output_dtype": None} | OPTIONS),
    "explain": (["query", "key", "value"], MASK, {"return_weights": False, "return_lse": False} | OPTIONS),
    "attention_vjp": (["query", "key", "value"], {"mask": None}, {"dropout_rate": 0.0} | OPTIONS),
    "attention_scores": (["query", "key"], {"mask": None}, {"stage": "masked"} | SCORES),
    "attention_gradients": (
        ["query", "key", "value", "output", "lse", "grad_output"], {"mask": None},
        {"grad_lse": None, "dropout_rate": 0.0} | OPTIONS,
    ),
    "attention_statistics": (["query", "key"], {"mask": None}, OPTIONS),
    "merge_attention": (["outputs", "lses"], {}, {}),
    "varlen_attention": (
        ["query", "key", "value", "cu_seqlens_q"], {"cu_seqlens_k": None}, {"mask": None, "dropout_rate": 0.0, "return_lse": False} | PACKED
    ),
    "self_attention": (["x", "d_model"], MASK, WEIGHTS | OPTIONS),
    "cross_attention": (["query", "context", "d_model"], MASK, WEIGHTS | OPTIONS),
    "multi_head_attention": (["query", "key", "value", "num_heads", "d_model"], MASK, HEADS | OPTIONS),
    "multi_head_self_attention": (["x", "num_heads", "d_model"], MASK, HEADS | OPTIONS),
    "init_multi_head_params": (
        ["d_model", "num_heads"], {}, {"num_kv_heads": None, "bias": False, "rng": None} | WHERE
    ),
    "create_padding_mask": (["seq"], {"pad_token": 0}, {"dtype": None}),
    "create_causal_mask": (["seq_len"], {}, WHERE),
    "positional_encoding": (["seq_len", "d_model"], {"n": 10000}, WHERE),
    "progress": ([], {"report": None}, {}),
    "learned_positional_encoding": (["seq_len", "d_model"], {}, {"rng": None} | WHERE),
    "rotary_embedding": (
        ["x"], {"positions": None},
        ROTARY | {"sections": None, "axial": False, "cache": None},
    ),
    "axial_rotary_embedding": (["x", "height", "width"], {}, ROTARY),
    "rotary_cache": (
        ["positions", "rotary_dim"], {},
        {"base": 10000.0, "scaling": None, "sections": None, "axial": False} | WHERE,
    ),
    "permute_rotary_weights": (["w", "num_heads"], {}, {"to": REQUIRED, "rotary_dim": None, "axis": -1}),
    "alibi_slopes": (["num_heads"], {}, WHERE),
    "softmax": (["x"], {"axis": -1}, {}),
    "dropout": (["x", "rate"], {}, {"rng": None}),
    "layer_normalization": (["x"], {"gamma": None, "beta": None, "epsilon": 1e-5}, {}),
    "attention_score_visualization": (["attention_weights"], {"tokens": None}, {}),
}  # fmt: skip

LINEAR = {
    "feature_map": "elu",
    "normalize": None,
    "is_causal": False,
    "update_rule": "linear",
    "decay": None,
    "beta": None,
    "scale": None,
    "state": None,
    "return_state": False,
    "chunk_size": 64,
    "impl": "auto",
}
LINEAR_SIGNATURES = {
    "linear_attention": (["query", "key", "value"], {}, LINEAR),
    "linear_attention_vjp": (["query", "key", "value"], {}, LINEAR),
    "performer_features": (
        ["width"], {"num_features": None}, {"scale": None, "orthogonal": True, "rng": None} | WHERE
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    check(getattr(attention_xp, name), *SIGNATURES[name])


@pytest.mark.parametrize("name", LINEAR_SIGNATURES)
def test_signature_of_linear_attention(name):
    check(getattr(attention_xp.linear, name), *LINEAR_SIGNATURES[name])


RULES = {
    attention_xp.masks.CausalMask: [],
    attention_xp.masks.WindowMask: ["left", "right"],
    attention_xp.masks.SegmentMask: ["query_ids", "key_ids"],
    attention_xp.biases.AlibiBias: ["slopes"],
    attention_xp.biases.RelativePositionBias: ["table", "bidirectional", "max_distance"],
    attention_xp.masks.Mask: [],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules_tell_what_makes_them(rule):
    """Sphinx takes ``__signature__``, and would take that of ``__new__`` next, which takes anything."""
    assert list(rule.__signature__.parameters) == list(inspect.signature(rule).parameters) == RULES[rule]


def test_a_rule_of_a_user_tells_its_fields():
    @dataclass(frozen=True, eq=False)
    class Near(attention_xp.masks.Mask):
        distance: int = 3

        def __call__(self, text):
            return text

    assert str(inspect.signature(Near)) == "(distance: int = 3)"
    assert str(inspect.signature(Near())) == "(text)"


def check(function, required, optional, keyword_only):
    parameters = inspect.signature(function).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional) == [*required, *optional]
    assert {n: default for n, default in positional.items() if n in optional} == optional
    assert {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == keyword_only


def test_every_public_function_is_listed_here():
    functions = {f for n in attention_xp.__all__ if inspect.isfunction(f := getattr(attention_xp, n))}
    assert {f.__name__ for f in functions} == set(SIGNATURES)
    functions = {f for n in attention_xp.linear.__all__ if inspect.isfunction(f := getattr(attention_xp.linear, n))}
    assert {f.__name__ for f in functions} == set(LINEAR_SIGNATURES)
