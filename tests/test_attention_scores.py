"""The scores after each step, against the formula and against the weights that they make."""

import math

import numpy as np
import pytest

from attention_xp import attention_scores, softmax
from attention_xp.masks import CausalMask, LengthMask
from tests import reference
from tests._assertions import assert_close
from tests._autodiff import check
from tests._inputs import inputs, normal
from tests._quick import some_rare
from tests._wrong import Wrong, check as check_wrong
from tests.score_mods import distance_penalty
from tests.test_attention_options import OPTIONS

Q, K, _ = inputs((2, 4, 5, 8), (2, 2, 7, 8))
# Forms of options whose scores are made as those of others; attention itself is tested with each.
ALIKE = {
    "float mask", "mask of a row", "mask of a number", "bias of the keys", "bias and mask", "causal, before the keys",
    "window, left only", "window, right only", "window, open", "window, itself", "integer scale", "integer soft cap",
    "query length", "key length",
}  # fmt: skip
STAGES = ("product", "capped", "modified", "biased", "masked")


def expected_stages(softcap, score_mod, bias, mask, causal_offset):
    """The five steps for one set of options, one after the other."""
    product = Q @ np.repeat(K, 2, axis=1).swapaxes(-1, -2) * 0.7
    capped = softcap * np.tanh(product / softcap)
    b, h, i, j = np.ogrid[:2, :4, :5, :7]
    modified = score_mod(capped, b, h, i + causal_offset, j)
    biased = modified + bias + mask
    masked = np.where((j <= i + causal_offset) & (j < 6), biased, -math.inf)
    return dict(zip(STAGES, (product, capped, modified, biased, masked), strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage(library, make, stage):
    bias, mask = normal(4, 5, 7), np.where(normal(5, 7) > 1.0, -math.inf, normal(5, 7))
    expected = expected_stages(2.0, distance_penalty(np), bias, mask, 2)[stage]
    actual = attention_scores(
        make(Q), make(K), make(mask), stage=stage, bias=make(bias), scale=0.7, softcap=2.0, is_causal=True, query_offset=2,
        score_mod=distance_penalty(library.namespace()), key_lengths=6,
    )  # fmt: skip
    assert_close(actual, expected, library, rtol=1e-4)


@pytest.mark.parametrize("name", some_rare({n: n for n in OPTIONS if "sinks" not in n}, ALIKE.__contains__))
def test_the_softmax_of_the_last_gives_the_weights(library, name):
    options = dict(OPTIONS[name])
    made = {n: library.array(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    if "score_mod" in options:
        made["score_mod"] = options["score_mod"](library.namespace())
        options["score_mod"] = options["score_mod"](np)
    scores = attention_scores(library.array(Q), library.array(K), **made)
    expected = reference.attention(Q, K, K, **options)
    assert_close(softmax(scores), expected.weights, library)


@pytest.mark.with_nan
def test_keys_that_nobody_attends_are_excluded_at_the_end_and_there_before(library, make):
    key = K.copy()
    key[:, :, 4:] = np.nan
    for how in ({"key_lengths": 4}, {"mask": LengthMask(4)}):
        masked = attention_scores(make(Q), make(key), **how)
        expected = attention_scores(Q, K, **how)
        assert expected.shape == (2, 4, 5, 7)
        assert np.all(expected[..., 4:] == -math.inf)
        assert_close(masked, expected, library)
        product = attention_scores(make(Q), make(K), stage="product", **how)
        assert_close(product, attention_scores(Q, K), library)


def test_without_heads_and_in_16_bits(library):
    dtype = library.dtypes()[0]
    query, key, _ = inputs((2, 5, 8), (2, 7, 8))
    actual = attention_scores(library.array(query, dtype), library.array(key, dtype), CausalMask(), query_offset=0)
    expected = np.where(np.tri(5, 7, dtype=bool), query @ key.swapaxes(-1, -2) / 8**0.5, -math.inf)
    assert_close(actual, expected, library, dtype=dtype, atol=4e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.backends("torch", "jax")
def test_derivatives(library):
    def function(q, k, bias):
        return attention_scores(q, k, bias=bias, softcap=2.0, stage="biased", is_causal=True)

    q, k, _ = inputs((2, 3, 4), (1, 3, 4))
    check(library, function, q, k, normal(3, 3))


WRONG = {
    "a stage": Wrong(lambda a: attention_scores(a(2, 2), a(2, 2), stage="softmax"), ValueError, ("stage", "'biased'")),
    "no stage": Wrong(lambda a: attention_scores(a(2, 2), a(2, 2), stage=["product"]), ValueError, ("stage",)),
    "sinks": Wrong(lambda a: attention_scores(a(2, 2), a(2, 2), sinks=a()), TypeError, ("no argument 'sinks'",)),
    "a kernel": Wrong(lambda a: attention_scores(a(2, 2), a(2, 2), impl="dense"), TypeError, ("no argument 'impl'",)),
    "a list": Wrong(lambda a: attention_scores([[1.0]], a(2, 2)), TypeError, ("query", "list")),
    "a width": Wrong(
        lambda a: attention_scores(a(5, 8), a(5, 4)), ValueError, ("key has width 4 but query has width 8", "(5, 4)")
    ),
    "no offset": Wrong(
        lambda a: attention_scores(a(2, 2), a(3, 2), is_causal=True, stage="product"), ValueError, ("query_offset",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_calls(library, wrong):
    check_wrong(wrong, library)
