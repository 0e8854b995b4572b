"""What is told of the weights agrees with the weights of the formula."""

import importlib
import inspect
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings

from attention_xp import AttentionStatistics, attention_statistics
from attention_xp.biases import AlibiBias
from attention_xp.masks import CausalMask, SegmentMask, WindowMask
from tests import reference
from tests._assertions import assert_close
from tests._autodiff import check
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests._wrong import Wrong, check as check_wrong
from tests.conftest import with_tiles
from tests.strategies import Case, cases
from tests.test_attention_options import OPTIONS
from tests.test_attention_property import examples

Q, K, _ = inputs((2, 4, 5, 8), (2, 2, 7, 8))


def expected_statistics(query, key, **options):
    """The statistics by the weights of the formula; scores are what the softmax had."""
    found = reference.attention(query, key, key[..., :1], **options)
    without = {name: x for name, x in options.items() if name != "sinks"}
    plain = reference.attention(query, key, key[..., :1], **without)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(found.weights > 0.0, np.log(found.weights), 0.0)
        scores = np.log(plain.weights) + plain.lse[..., None]
    largest = np.where(np.isfinite(plain.lse), np.max(scores, axis=-1, initial=-np.inf), -np.inf)
    return found.lse, largest, -(found.weights * logs).sum(-1), found.weights.sum(-2)


def assert_statistics(actual, expected, library, **kwargs):
    assert type(actual) is AttentionStatistics
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, library, **kwargs)


def made_options(library, options):
    made = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    if "score_mod" in options and "score" not in inspect.signature(options["score_mod"]).parameters:
        made["score_mod"], options["score_mod"] = options["score_mod"](library.namespace()), options["score_mod"](np)
    return made


@pytest.mark.parametrize("name", OPTIONS)
@with_tiles(None, (2, 3))
def test_every_option(library, make, impl, name, tile):
    options = dict(OPTIONS[name])
    made = made_options(library, options)
    actual = attention_statistics(make(Q), make(K), impl=impl, tile=tile, **made)
    assert_statistics(actual, expected_statistics(Q, K, **options), library)


def test_options_combine(library, impl):
    @settings(max_examples=examples(library))
    @given(cases(library.dtypes()))
    def combine(case: Case) -> None:
        (query, key, _), options = case.rounded(library)
        made = case.keywords(library)
        for dropped in ("rng", "dropout_rate"):
            options.pop(dropped, None)
            made.pop(dropped, None)
        lead = np.broadcast_shapes(*(x.shape[: case.query.ndim - 2 - (case.query.ndim > 3)] for x in (query, key)))
        if lead != case.scores()[: len(lead)]:
            return  # the batch of the values alone is larger
        actual = attention_statistics(*case.inputs(library)[:2], **made, impl=impl)
        dtype = "float64" if case.dtype == "float64" else "float32"
        assert_statistics(actual, expected_statistics(query, key, **options), library, dtype=dtype, atol=1e-4)

    combine()


@pytest.mark.parametrize("mask", [None, CausalMask(), WindowMask(40, 7), SegmentMask(np.arange(3000) // 500)], ids=repr)
def test_many_blocks(library, make, mask):
    q, k, _ = inputs((1, 2, 300, 4), (1, 1, 3000, 4))
    actual = attention_statistics(make(q), make(k), mask, query_offset=2000, impl="tiled", tile=(64, 100))
    keep = None if mask is None else mask.to_array(300, 3000, 2000)
    assert_statistics(actual, expected_statistics(q, k, mask=keep), library, rtol=1e-4)
    chosen = attention_statistics(make(q), make(k), mask, query_offset=2000)
    assert_statistics(chosen, expected_statistics(q, k, mask=keep), library, rtol=1e-4)


def test_a_bias_that_is_a_rule(library, make, impl):
    slopes = np.asarray([0.5, 0.25, 0.1, 0.0], np.float32)
    actual = attention_statistics(make(Q), make(K), bias=AlibiBias(make(slopes)), impl=impl, tile=(2, 3))
    bias = -slopes[:, None, None] * abs(np.arange(5)[:, None] - np.arange(7))
    assert_statistics(actual, expected_statistics(Q, K, bias=bias), library)


def test_what_it_means():
    """Uniform attention has as many nats as keys, a sharp one none; every row hands out a weight of one."""
    x = np.zeros((2, 3, 16, 4))
    found = attention_statistics(x, x)
    np.testing.assert_allclose(found.entropy, np.log(16))
    np.testing.assert_allclose(found.key_totals, 1.0)
    sharp = attention_statistics(1000.0 * np.eye(6), np.eye(6))
    np.testing.assert_allclose(sharp.entropy, 0.0, atol=1e-12)
    np.testing.assert_allclose(sharp.key_totals, 1.0)
    np.testing.assert_allclose(sharp.max_score, 1000.0 / 6**0.5)


@pytest.mark.with_nan
def test_what_may_not_be_attended_leaves_no_trace(library, make, impl):
    key = K.copy()
    key[:, :, 4:] = np.nan
    actual = attention_statistics(make(Q), make(key), key_lengths=4, impl=impl, tile=(2, 3))
    expected = expected_statistics(Q, K, key_lengths=4)
    assert_statistics(actual, expected, library)


@pytest.mark.parametrize("shape", [(0, 8), (5, 8), (2, 0, 8), (2, 0, 5, 8), (2, 3, 0, 8), (3, 2, 4, 5, 8)])
@pytest.mark.parametrize("keys", [0, 1, 6])
@pytest.mark.parametrize("width", [8, 0])
def test_any_shape(library, make, impl, shape, keys, width):
    q, k = normal(*shape[:-1], width), normal(*shape[:-2], keys, width)
    actual = attention_statistics(make(q), make(k), impl=impl, tile=(2, 3))
    assert_statistics(actual, expected_statistics(q, k), library)


@pytest.mark.backends("torch", "jax")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_derivatives(library, impl):
    def call(q, k, sinks):
        return attention_statistics(q, k, sinks=sinks, is_causal=True, query_offset=0, impl=impl, tile=(2, 3))

    q, k, _ = inputs((2, 5, 2), (2, 4, 2))
    check(library, lambda q, k: call(q, k, None), q, k)
    q, k, _ = inputs((1, 2, 3, 2))
    check(library, call, q, k, normal(2))


@pytest.mark.backends("torch", "jax")
def test_compiled_and_mapped(library, make, impl):
    def call(q, k, lengths):
        return attention_statistics(q, k, CausalMask(), key_lengths=lengths, query_offset=1, impl=impl, tile=(2, 3))

    arrays = [make(Q), make(K), make(np.asarray([7, 3]))]
    expected = [to_numpy(x) for x in call(*arrays)]
    if library.like("jax"):
        jax = importlib.import_module("jax")
        compiled, vmap = jax.jit(call), jax.vmap
    else:
        torch = importlib.import_module("torch")
        torch.compiler.reset()
        compiled, vmap = torch.compile(call, fullgraph=True, backend="eager"), torch.func.vmap
    assert_statistics(compiled(*arrays), expected, library)
    mapped = vmap(call)(*(library.namespace().stack([a, a]) for a in arrays))
    assert_statistics(AttentionStatistics(*(x[1, ...] for x in mapped)), expected, library)


@pytest.mark.backends("numpy")
def test_memory_is_linear():
    def peak(size):
        q, k = np.ones((2, 1, 1, size, 8), np.float32)
        tracemalloc.start()
        attention_statistics(q, k, window=(512, 0))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(16384) < 16384**2 * 4 / 16


WRONG = {
    "a list": Wrong(lambda a: attention_statistics([[1.0]], a(2, 2)), TypeError, ("query", "list")),
    "no key": Wrong(lambda a: attention_statistics(a(2, 2), None), TypeError, ("key", "None")),
    "integers": Wrong(lambda a: attention_statistics(a(2, 2), a(2, 2, dtype="int32")), TypeError, ("key", "int32")),
    "one axis": Wrong(lambda a: attention_statistics(a(2, 2), a(2)), ValueError, ("key", "2 axes", "(2,)")),
    "width": Wrong(
        lambda a: attention_statistics(a(5, 8), a(5, 4)), ValueError, ("key has width 4 but query has width 8", "(5, 4)")
    ),
    "dropout": Wrong(lambda a: attention_statistics(a(2, 2), a(2, 2), rng=1), ValueError, ("rng", "before dropout")),
    "a rate": Wrong(lambda a: attention_statistics(a(2, 2), a(2, 2), dropout_rate=0.5), TypeError, ("dropout_rate",)),
    "fused": Wrong(lambda a: attention_statistics(a(2, 2), a(2, 2), impl="fused"), ValueError, ("impl='fused'",)),
    "alignment": Wrong(
        lambda a: attention_statistics(a(2, 2), a(3, 2), is_causal=True), ValueError, ("query_offset is required",)
    ),
    "unknown option": Wrong(lambda a: attention_statistics(a(2, 2), a(2, 2), windows=2), TypeError, ("windows",)),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_call(library, wrong):
    check_wrong(wrong, library)
