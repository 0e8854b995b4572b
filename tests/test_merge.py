"""Merging attention over parts of the keys."""

import importlib

import numpy as np
import pytest

from attention_xp import flash_attention, merge_attention
from tests._assertions import assert_close
from tests._autodiff import gradients
from tests._backends import to_numpy
from tests._inputs import inputs
from tests.reference import attention

PARTS = ((0, 2), (2, 3), (3, 7))


def parts(make, query, key, value, **options):
    return [
        flash_attention(make(query), make(key[..., a:b, :]), make(value[..., a:b, :]), return_lse=True, **options)
        for a, b in PARTS
    ]


def test_the_union_of_parts_is_the_whole(library, make):
    query, key, value = inputs((2, 3, 7, 4))
    output, lse = merge_attention(*zip(*parts(make, query, key, value), strict=True))
    expected, _, expected_lse = attention(query, key, value)
    assert_close(output, expected, library)
    assert_close(lse, expected_lse, library)


def test_merging_is_associative(library, make):
    first, second, third = parts(make, *inputs((2, 3, 7, 4)))
    left = merge_attention(*zip(merge_attention(*zip(first, second, strict=True)), third, strict=True))
    right = merge_attention(*zip(first, merge_attention(*zip(second, third, strict=True)), strict=True))
    for a, b in zip(left, right, strict=True):
        assert_close(a, to_numpy(b), library)


def test_parts_that_attend_nothing_add_nothing(library, make):
    query, key, value = inputs((2, 3, 7, 4))
    some = flash_attention(make(query), make(key), make(value), return_lse=True)
    nothing = flash_attention(make(query), make(key), make(value), key_lengths=0, return_lse=True)
    output, lse = merge_attention(*zip(some, nothing, strict=True))
    assert_close(output, to_numpy(some[0]), library)
    assert_close(lse, to_numpy(some[1]), library)
    output, lse = merge_attention(*zip(nothing, nothing, strict=True))
    assert_close(output, np.zeros(query.shape), library)
    assert_close(lse, np.full(query.shape[:-1], -np.inf), library)


@pytest.mark.with_nan
def test_what_a_part_without_weight_holds_does_not_matter(library, make):
    query, key, value = inputs((2, 3, 7, 4))
    some = flash_attention(make(query), make(key), make(value), return_lse=True)
    for number in (np.nan, np.inf):
        nothing = make(np.full(query.shape, number)), make(np.full(query.shape[:-1], -np.inf))
        output, lse = merge_attention(*zip(nothing, some, strict=True))
        assert_close(output, to_numpy(some[0]), library)
        assert_close(lse, to_numpy(some[1]), library)
        assert_close(merge_attention(*zip(nothing, nothing, strict=True))[0], np.zeros(query.shape), library)


@pytest.mark.with_nan
@pytest.mark.parametrize("output", [5.0, np.nan])
@pytest.mark.parametrize("lse", [-1e4, -np.inf])
def test_a_part_is_silent_where_its_log_sum_exp_is_minus_infinity(library, make, output, lse):
    found, _ = merge_attention([make([[1.0]]), make([[output]])], [make([0.0]), make([lse])])
    assert_close(found, np.asarray([[np.nan if np.isnan(output) and np.isfinite(lse) else 1.0]]), library)


@pytest.mark.with_nan
@pytest.mark.parametrize("output", [5.0, np.nan])
@pytest.mark.parametrize("lse", [-1e4, -1.0, -np.inf])
@pytest.mark.backends("jax")
def test_devices_merge_their_parts_alike(library, make, output, lse):
    merged = importlib.import_module("attention_xp.distributed._jax.merged")._merged
    outputs, lses = np.asarray([1.0, output, 2.0, 3.0]).reshape(2, 2, 1, 1), np.asarray([0.0, lse, 1.0, -np.inf])
    vmap = importlib.import_module("jax").vmap
    on_ranks = vmap(lambda outputs, lses: merged(list(outputs), list(lses), "ranks"), axis_name="ranks")
    expected = merge_attention(list(map(make, outputs.reshape(4, 1, 1))), list(map(make, lses.reshape(4, 1))))
    for found, alone in zip(on_ranks(make(outputs), make(lses.reshape(2, 2, 1))), expected, strict=True):
        for of_rank in found:
            assert_close(of_rank, to_numpy(alone), library)


@pytest.mark.with_nan
@pytest.mark.backends("torch", "jax")
def test_no_gradient_comes_from_a_part_without_weight(library):
    def total(output, lse, empty, nothing):
        merged = merge_attention([output, empty], [lse, nothing])
        return (merged[0] ** 2).sum() + merged[1][:2].sum()

    arrays = np.ones((3, 4)), np.asarray([0.5, 1.0, -np.inf]), np.full((3, 4), np.nan), np.full(3, -np.inf)
    for slope, expected in zip(
        gradients(library, total)(*arrays), ([[2.0], [2.0], [0.0]], [1.0, 1.0, 0.0], 0.0, 0.0), strict=True
    ):
        np.testing.assert_allclose(slope, np.broadcast_to(expected, slope.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "lses", "text"),
    [
        ([], [], "at least one output"),
        ([np.ones((2, 3))], [], "1 outputs, 0 lses"),
        ([np.ones((2, 3))], [np.ones(3)], r"lse \(\.\.\., H, Sq\) = \(2,\)"),
        ([np.ones((2, 3)), np.ones((2, 4))], [np.ones(2), np.ones(2)], r"outputs\[1\].*\(2, 3\).*got output \(2, 4\)"),
    ],
)
def test_wrong_parts(outputs, lses, text):
    with pytest.raises(ValueError, match=text):
        merge_attention(outputs, lses)


@pytest.mark.parametrize(("given", "kind"), [(np.ones((2, 3)), "a single array"), (3, "int")])
def test_parts_come_as_sequences(given, kind):
    for outputs, lses, name in ((given, [np.ones(2)], "outputs"), ([np.ones((2, 3))], given, "lses")):
        with pytest.raises(TypeError, match=f"{name} must be a sequence of arrays, .* got {kind}"):
            merge_attention(outputs, lses)


@pytest.mark.backends("strict")
def test_parts_on_two_devices(make, xp):
    output, lse = make(np.ones((2, 3))), xp.zeros(2, dtype=xp.float32, device=xp.Device("CPU_DEVICE"))
    with pytest.raises(ValueError, match=r"lses\[0\] is on .* but outputs\[0\] is on"):
        merge_attention([output], [lse])
