"""Dropout on the attention weights: what is kept, how it scales, what it depends on."""

import numpy as np
import pytest

from attention_xp import flash_attention, multi_head_attention, scaled_dot_product_attention
from tests._assertions import assert_close, assert_equal
from tests._backends import to_numpy
from tests._generators import KINDS, source
from tests._inputs import inputs, normal

Q, K, V = inputs((2, 4, 5, 8), (2, 2, 7, 8))


def weights_of(library, impl, q=Q, k=K, v=V, **options):
    """The weights after dropout, in NumPy."""
    made = (library.array(x) for x in (q, k, v))
    return to_numpy(scaled_dot_product_attention(*made, impl=impl, **options)[1])


def test_rate_zero_changes_nothing(library, make, impl):
    q, k, v = (make(x) for x in (Q, K, V))
    for plain, dropped in zip(
        scaled_dot_product_attention(q, k, v, impl=impl),
        scaled_dot_product_attention(q, k, v, None, 0.0, rng=1, impl=impl),
        strict=True,
    ):
        assert_equal(dropped, to_numpy(plain), library)


@pytest.mark.parametrize("rate", [0.25, 0.9])
def test_kept_weights_are_scaled_up(library, impl, rate):
    plain = weights_of(library, impl)
    dropped = weights_of(library, impl, dropout_rate=rate, rng=1)
    kept = dropped != 0.0
    assert kept.any()
    assert not kept.all()
    np.testing.assert_allclose(dropped[kept], plain[kept] / (1.0 - rate), rtol=1e-5)


def test_no_weight_grows_beyond_what_the_others_lose(library, impl):
    q = np.zeros((1, 1, 40, 1))
    assert weights_of(library, impl, q, q, q, dropout_rate=1.0 - 2.0**-50, rng=5).max() <= 2**16 / 40


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_share_of_kept_weights(library, impl, rate):
    q = np.zeros((4, 4, 40, 1))
    kept = weights_of(library, impl, q, q, q, dropout_rate=rate, rng=5) != 0.0
    deviation = (rate * (1.0 - rate) / kept.size) ** 0.5
    assert abs(kept.mean() - (1.0 - rate)) < 5.0 * deviation
    # Neighbours are independent, along every axis.
    for axis in range(4):
        both = (kept & np.roll(kept, 1, axis)).mean()
        assert abs(both - (1.0 - rate) ** 2) < 5.0 * ((1.0 - rate) ** 2 / kept.size) ** 0.5


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "query_offset": 2}], ids=["full", "causal"])
def test_weights_are_those_that_made_the_output(library, make, xp, impl, options):
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8), (2, 4, 7, 8)))
    output, weights = scaled_dot_product_attention(q, k, v, None, 0.5, rng=2, impl=impl, **options)
    assert_close(output, to_numpy(xp.matmul(weights, v)), library)
    without_weights = flash_attention(q, k, v, None, 0.5, rng=2, impl=impl, **options)
    assert_close(without_weights, to_numpy(output), library)


def test_lse_is_that_before_dropout(library, make, impl):
    q, k, v = (make(x) for x in (Q, K, V))
    _, plain = flash_attention(q, k, v, return_lse=True, impl=impl)
    _, dropped = flash_attention(q, k, v, None, 0.5, rng=2, return_lse=True, impl=impl)
    assert_close(dropped, to_numpy(plain), library)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 1, 2**64 - 1])
def test_a_seed_keeps_the_same_positions_on_every_backend(library, impl, seed):
    made_by_numpy = scaled_dot_product_attention(Q, K, V, None, 0.5, rng=seed)[1]
    kept = weights_of(library, impl, dropout_rate=0.5, rng=seed) != 0.0
    np.testing.assert_array_equal(kept, made_by_numpy != 0.0)


def test_a_seed_repeats_and_another_differs(library, impl):
    first, again, other = (weights_of(library, impl, dropout_rate=0.5, rng=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    high = weights_of(library, impl, dropout_rate=0.5, rng=7 + 2**40)
    assert (first != high).any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_of_randomness(library, impl, kind):
    rng, twin = source(library, kind), source(library, kind)
    if rng is None:
        pytest.skip(f"{library.value} has no {kind}")
    kept = weights_of(library, impl, dropout_rate=0.5, rng=rng) != 0.0
    assert kept.any()
    assert not kept.all()
    np.testing.assert_array_equal(weights_of(library, impl, dropout_rate=0.5, rng=twin) != 0.0, kept)
    other = weights_of(library, impl, dropout_rate=0.5, rng=source(library, kind, seed=4)) != 0.0
    assert (other != kept).any()


@pytest.mark.backends("numpy", "torch", "cupy")
def test_a_generator_moves_on(library, impl):
    rng = source(library, "generator")
    first, second = (weights_of(library, impl, dropout_rate=0.5, rng=rng) for _ in range(2))
    assert ((first != 0.0) != (second != 0.0)).any()


@pytest.mark.backends("numpy", "strict", "torch", "cupy")
def test_no_source_draws_fresh_entropy(library, impl):
    first, second = (weights_of(library, impl, dropout_rate=0.5) for _ in range(2))
    assert ((first != 0.0) != (second != 0.0)).any()


@pytest.mark.backends("jax")
def test_jax_needs_a_key(make, impl):
    q, k, v = (make(x) for x in (Q, K, V))
    with pytest.raises(ValueError, match=r"rng.*key"):
        scaled_dot_product_attention(q, k, v, None, 0.5, impl=impl)


@pytest.mark.parametrize("offset", [0, 1, [0, 3]])
@pytest.mark.parametrize("addend", [False, True])
def test_the_draw_does_not_depend_on_the_tile(library, offset, addend):
    offset = library.array(np.asarray(offset), "int32") if isinstance(offset, list) else offset
    options = {"query_offset": offset, "bias": library.array(np.zeros((5, 7))) if addend else None}
    whole = weights_of(library, "dense", dropout_rate=0.5, rng=3, **options)
    pieces = weights_of(library, "tiled", dropout_rate=0.5, rng=3, **options)
    v = library.array(np.broadcast_to(np.eye(7), (2, 2, 7, 7)))
    q, k = library.array(Q), library.array(K)
    outputs = [
        to_numpy(flash_attention(q, k, v, None, 0.5, rng=3, impl="tiled", tile=tile, **options))
        for tile in ((3, 3), (4, 5), (5, 1))
    ]
    for actual in (pieces, *outputs):
        np.testing.assert_array_equal(actual != 0.0, whole != 0.0)


def test_the_draw_follows_the_query_position(library, impl):
    whole = weights_of(library, impl, dropout_rate=0.5, rng=3)
    part = weights_of(library, impl, Q[:, :, 2:], dropout_rate=0.5, rng=3, query_offset=2)
    np.testing.assert_array_equal(part != 0.0, whole[:, :, 2:] != 0.0)


@pytest.mark.parametrize(
    "part",
    [
        {"q": Q[:1], "k": K[:1], "v": V[:1]},
        {"q": Q[:, :2], "k": K[:, :1], "v": V[:, :1]},
        {"q": Q, "k": K[:, :, :4], "v": V[:, :, :4]},
        {"q": Q[:, :, :3], "k": K, "v": V},
        {"q": Q.reshape(1, 2, 4, 5, 8), "k": K.reshape(1, 2, 2, 7, 8), "v": V.reshape(1, 2, 2, 7, 8)},
    ],
    ids=["batch", "heads", "keys", "queries", "batch axes"],
)
def test_the_draw_depends_on_nothing_but_the_position(library, impl, part):
    whole = weights_of(library, impl, dropout_rate=0.5, rng=3) != 0.0
    actual = weights_of(library, impl, **part, dropout_rate=0.5, rng=3) != 0.0
    actual = actual.reshape(actual.shape[-4:])
    np.testing.assert_array_equal(actual, whole[tuple(slice(n) for n in actual.shape)])


def test_the_draw_does_not_depend_on_the_other_options(library, make, impl):
    plain = weights_of(library, impl, dropout_rate=0.5, rng=3) != 0.0
    options = {"bias": make(normal(5, 7)), "softcap": 2.0, "is_causal": True, "query_offset": 0}
    kept = weights_of(library, impl, dropout_rate=0.5, rng=3, **options) != 0.0
    np.testing.assert_array_equal(kept, plain & np.tri(5, 7, dtype=bool))


def test_no_heads_axis_draws_as_head_zero(library, impl):
    q, k, v = inputs((2, 1, 5, 8), (2, 1, 7, 8))
    with_axis = weights_of(library, impl, q, k, v, dropout_rate=0.5, rng=3)
    without = weights_of(library, impl, q[:, 0], k[:, 0], v[:, 0], dropout_rate=0.5, rng=3)
    np.testing.assert_array_equal(without != 0.0, with_axis[:, 0] != 0.0)


def test_multi_head_attention_draws_per_head(library, make):
    x = make(normal(2, 5, 8))
    _, weights = multi_head_attention(x, x, x, 4, 8, None, 0.5, rng=3)
    q = np.zeros((2, 4, 5, 2))
    expected = scaled_dot_product_attention(q, q, q, None, 0.5, rng=3)[1] != 0.0
    np.testing.assert_array_equal(to_numpy(weights) != 0.0, expected)
