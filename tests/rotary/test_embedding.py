"""Rotary position embeddings: pairings, positions, partial width, dtypes, distant positions."""

import importlib

import numpy as np
import pytest

from attention_xp import permute_rotary_weights, rotary_cache, rotary_embedding
from tests._assertions import assert_close, assert_equal, dtype_name
from tests._autodiff import check, gradients
from tests._backends import to_numpy
from tests._inputs import normal
from tests.rotary._cases import frequencies, over_heads, rotated

SHAPES = [(5, 8), (2, 5, 8), (2, 3, 5, 8), (2, 1, 3, 5, 8), (0, 8), (2, 3, 0, 8), (0, 3, 5, 8)]
PAIRINGS = pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])


def batch_of(shape):
    """The batch shape of an input."""
    return shape[: -3 if len(shape) > 3 else -2]


@PAIRINGS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_implied_positions(library, make, shape, interleaved):
    x = normal(*shape)
    expected = rotated(x, np.arange(shape[-2])[:, None] * frequencies(8), interleaved)
    assert_close(rotary_embedding(make(x), interleaved=interleaved), expected, library)


@PAIRINGS
@pytest.mark.parametrize("dtype", ["int32", "int64", "int16", "uint8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_positions_of_each_batch_item(library, make, shape, dtype, interleaved):
    positions = np.random.default_rng(1).integers(0, 200, (*batch_of(shape), shape[-2]))
    x = normal(*shape)
    expected = rotated(x, over_heads(positions[..., None] * frequencies(8), x), interleaved)
    if library.like("jax") and dtype == "int64":
        dtype = str(library.namespace().asarray(0).dtype)
    assert_close(rotary_embedding(make(x), make(positions, dtype), interleaved=interleaved), expected, library)


def test_positions_without_batch_axes_and_of_length_one(library, make):
    x = normal(2, 3, 5, 8)
    for positions in (np.asarray([3, 1, 4, 1, 5]), np.asarray([[3, 1, 4, 1, 5]])):
        expected = rotated(x, positions.reshape(5, 1) * frequencies(8))
        assert_close(rotary_embedding(make(x), make(positions)), expected, library)


@PAIRINGS
@pytest.mark.parametrize("rotary_dim", [2, 4, 6, 8])
def test_features_beyond_the_rotary_width_are_handed_through(library, make, rotary_dim, interleaved):
    x = normal(2, 5, 9)
    actual = rotary_embedding(make(x), rotary_dim=rotary_dim, interleaved=interleaved)
    assert_close(actual, rotated(x, np.arange(5)[:, None] * frequencies(rotary_dim), interleaved), library)
    assert_equal(actual[..., rotary_dim:], to_numpy(make(x))[..., rotary_dim:], library)


@pytest.mark.parametrize("base", [2.0, 1.0, 500000])
def test_the_base(library, make, base):
    x = normal(5, 8)
    expected = rotated(x, np.arange(5)[:, None] * frequencies(8, base))
    assert_close(rotary_embedding(make(x), base=base), expected, library)


@PAIRINGS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_is_kept(library, make, dtype, interleaved):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    x = make(normal(2, 3, 5, 8), dtype)
    positions = np.asarray([[0, 1, 2, 3, 4], [60, 61, 62, 63, 1000]])
    rounded = to_numpy(x).astype(np.float64)
    expected = rotated(rounded, over_heads(positions[..., None] * frequencies(8), rounded), interleaved)
    assert_close(rotary_embedding(x, make(positions), interleaved=interleaved), expected, library, dtype=dtype)


DISTANT = np.asarray([0, 4095, 4096, 100_003, 16_777_217, 123_456_789, 2**31 - 1])


@pytest.mark.parametrize("sign", [1, -1])
def test_distant_positions_keep_their_digits(library, make, sign):
    positions = sign * DISTANT
    exact = positions[:, None] * frequencies(64).astype(np.longdouble)
    cache = rotary_cache(make(positions), 64)
    np.testing.assert_allclose(to_numpy(cache.cos), np.cos(exact).astype(float), rtol=0, atol=2e-6)
    np.testing.assert_allclose(to_numpy(cache.sin), np.sin(exact).astype(float), rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [4096, 4097, 70_000])
def test_distant_implied_positions_keep_their_digits(xp, device, length):
    exact = np.arange(length - 3, length)[:, None] * frequencies(16)
    cache = rotary_cache(length, 16, xp=xp, device=device)
    np.testing.assert_allclose(to_numpy(cache.cos)[-3:], np.cos(exact), rtol=0, atol=2e-6)
    np.testing.assert_allclose(to_numpy(cache.sin)[-3:], np.sin(exact), rtol=0, atol=2e-6)


@PAIRINGS
def test_scores_depend_on_the_difference_of_positions_alone(library, make, interleaved):
    q, k, dtype = normal(5, 8), normal(5, 8, seed=1), library.dtypes()[-1]

    def scores(shift):
        rows = make(np.arange(5) + shift)
        turned = [to_numpy(rotary_embedding(make(x, dtype), rows, interleaved=interleaved)) for x in (q, k)]
        return turned[0] @ turned[1].T

    np.testing.assert_allclose(scores(1000), scores(0), atol=1e-4)


def test_negative_positions_turn_back(library, make):
    x, positions = normal(2, 3, 5, 8), np.asarray([0, 7, 4000, 5000, 123_456])
    there = rotary_embedding(make(x), make(positions))
    assert_close(rotary_embedding(there, make(-positions)), x, library)


@pytest.mark.backends("torch", "jax")
@PAIRINGS
def test_the_gradient_is_the_rotation_back(library, make, interleaved):
    x, weights = normal(2, 5, 6), normal(2, 5, 6, seed=1)

    def loss(x):
        return rotary_embedding(x, rotary_dim=4, interleaved=interleaved) * make(weights)

    (slope,) = gradients(library, loss)(x)
    cos, sin = rotary_cache(5, 4, xp=library.namespace(), device=library.device())
    back = rotary_embedding(make(weights), interleaved=interleaved, cache=type(rotary_cache(1, 2))(cos, -sin))
    np.testing.assert_allclose(slope, to_numpy(back), atol=1e-5)


@pytest.mark.backends("torch", "jax")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_derivatives(library, make):
    positions = make(np.asarray([3, 1, 0]))
    check(library, lambda x: rotary_embedding(x, positions, rotary_dim=4), normal(2, 3, 6))


@pytest.mark.parametrize("rotary_dim", [None, 4, 6])
@pytest.mark.parametrize("to", ["half", "interleaved"])
def test_permuted_weights_go_with_the_other_pairing(library, make, to, rotary_dim):
    x = make(normal(2, 5, 7))
    weights = [make(normal(7, 3 * 6, seed=i)) for i in (1, 2)]
    biases = [make(normal(3 * 6, seed=i)) for i in (1, 2)]
    xp = library.namespace()

    def scores(weights, biases, interleaved):
        query, key = (
            rotary_embedding(
                xp.moveaxis(xp.reshape(x @ w + xp.reshape(b, (1, 1, -1)), (2, 5, 3, 6)), -2, -3),
                interleaved=interleaved, rotary_dim=rotary_dim,
            )
            for w, b in zip(weights, biases, strict=True)
        )  # fmt: skip
        return query @ xp.matrix_transpose(key)

    def permuted(arrays):
        return [permute_rotary_weights(a, 3, to=to, rotary_dim=rotary_dim) for a in arrays]

    expected = scores(weights, biases, interleaved=to == "half")
    actual = scores(permuted(weights), permuted(biases), interleaved=to == "interleaved")
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=1e-4, atol=1e-4)


def test_permuting_there_and_back_and_along_another_axis(library, make):
    w = make(normal(12, 5))
    there = permute_rotary_weights(w, 2, to="half", axis=0)
    assert dtype_name(there.dtype) == "float32"
    assert_equal(there, to_numpy(w)[[0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]], library, dtype="float32")
    assert_equal(permute_rotary_weights(there, 2, to="interleaved", axis=0), to_numpy(w), library, dtype="float32")


@pytest.mark.backends("torch")
def test_one_compiled_program_for_many_lengths(library, make):
    torch = importlib.import_module("torch")
    torch.compiler.reset()
    turn = torch.compile(
        lambda x, positions: (rotary_embedding(x), rotary_embedding(x, positions)),
        fullgraph=True, backend="eager", dynamic=True,
    )  # fmt: skip
    for length in (5, 7, 12):
        x, positions = make(normal(2, 3, length, 8)), make(np.arange(length) * 3)
        implied, given = turn(x, positions)
        assert_close(implied, to_numpy(rotary_embedding(x)), library)
        assert_close(given, to_numpy(rotary_embedding(x, positions)), library)
