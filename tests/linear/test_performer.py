"""Random features of the softmax kernel: unbiased, orthogonal, the same on every backend."""

import math

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp.linear import linear_attention, linear_attention_vjp, performer_features
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests.linear._reference import linear


def kernels(draws, m=8, **options):
    """Estimates of exp(x.y / sqrt(D)) for pairs of rows, one estimate for each seed."""
    x, y = 0.5 * normal(6, 8), 0.5 * normal(6, 8, seed=1)
    found = []
    for seed in range(draws):
        phi = performer_features(8, m, rng=seed, **options)
        found.append(np.sum(phi(x) * phi(y), axis=-1))
    return np.asarray(found), np.exp(np.sum(x * y, axis=-1) / math.sqrt(8))


@pytest.mark.parametrize("orthogonal", [False, True])
def test_features_are_unbiased(orthogonal):
    found, expected = kernels(2000, orthogonal=orthogonal)
    error = np.mean(found, axis=0) - expected
    assert np.all(np.abs(error) < 4.0 * np.std(found, axis=0) / math.sqrt(2000))
    assert np.all(np.std(found, axis=0) < expected)  # so that the limit above is narrow


def test_orthogonal_directions_vary_less():
    spread = [np.mean(np.std(kernels(500, orthogonal=o)[0], axis=0)) for o in (True, False)]
    assert spread[0] < spread[1]


def test_directions_are_orthogonal_within_groups():
    directions = performer_features(6, 15, rng=0).projection
    assert directions.shape == (6, 15)
    for start in (0, 6, 12):
        group = directions[:, start : start + 6]
        products = group.T @ group
        np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-12)
    assert abs(directions[:, 0] @ directions[:, 6]) > 1e-3


def test_directions_have_the_lengths_of_normal_vectors():
    squares = np.sum(performer_features(16, 1600, rng=0).projection ** 2, axis=0)
    assert np.mean(squares) == pytest.approx(16.0, rel=0.05)
    assert np.var(squares) == pytest.approx(32.0, rel=0.25)


def test_a_seed_gives_the_same_features_everywhere(library, xp, device):
    for orthogonal in (False, True):
        options = {"rng": 3, "dtype": "float32", "orthogonal": orthogonal}
        made = performer_features(5, 12, xp=xp, device=device, **options)
        assert_close(made.projection, performer_features(5, 12, **options).projection, library, rtol=1e-4, atol=1e-4)


def test_features_approximate_attention(library, xp, device):
    q, k, v = (0.5 * x for x in inputs((2, 2, 10, 8)))
    phi = performer_features(8, 2048, rng=0, xp=xp, dtype="float32", device=device)
    made = [library.array(x) for x in (q, k, v)]
    for is_causal in (False, True):
        found = to_numpy(linear_attention(*made, feature_map=phi, is_causal=is_causal))
        difference = found - flash_attention(q, k, v, is_causal=is_causal)
        assert np.sqrt(np.mean(difference**2)) < 0.02


def test_features_are_applied_chunk_by_chunk(library, xp, device):
    given = dict(zip(("query", "key", "value"), inputs((2, 4, 21, 8), (2, 2, 21, 8)), strict=True))
    phi = performer_features(8, rng=0, xp=xp, dtype="float32", device=device)
    assert phi.projection.shape == (8, round(8 * math.log(8)))
    same = performer_features(8, rng=0, dtype="float32")
    output, state = linear_attention(
        **{name: library.array(x) for name, x in given.items()},
        feature_map=phi, is_causal=True, return_state=True, chunk_size=8,
    )  # fmt: skip
    expected = linear(**given, feature_map=same, is_causal=True)
    assert_close(output, expected.output, library, rtol=1e-4, atol=1e-4)
    assert_close(state.memory, expected.memory, library, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_features():
    phi, x, grad, direction = performer_features(8, 12, rng=0), normal(5, 8), normal(5, 12), normal(5, 8, seed=1)
    slope = np.sum((phi(x + 1e-6 * direction) - phi(x - 1e-6 * direction)) * grad) / 2e-6
    np.testing.assert_allclose(np.sum(phi.pull(x, grad) * direction), slope, rtol=1e-7)
    q, k, v = inputs((9, 8))
    output, vjp = linear_attention_vjp(q, k, v, feature_map=phi)
    assert vjp(output).query.shape == (9, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((0,), {}, ValueError, "width must be at least 1"),
        ((8, 0), {}, ValueError, "num_features must be at least 1"),
        ((8.0,), {}, TypeError, "width must be an int"),
        ((8,), {"scale": 0.0}, ValueError, "scale must be positive"),
        ((8,), {"orthogonal": 1}, TypeError, "orthogonal must be a bool"),
        ((8,), {"rng": "a"}, TypeError, "rng must be"),
        ((8,), {"dtype": "int32"}, ValueError, "dtype"),
    ],
)
def test_wrong_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        performer_features(*arguments, **options)


def test_features_of_another_width_are_refused():
    x = normal(5, 8)
    with pytest.raises(ValueError, match=r"expected x \(\.\.\., S, 4\), got x \(5, 8\)"):
        performer_features(4, rng=0)(x)
    with pytest.raises(TypeError, match="x must be a floating array"):
        performer_features(8, rng=0)(np.ones((5, 8), int))
    with pytest.raises(ValueError, match="feature_map was made for width 4"):
        linear_attention(x, x, x, feature_map=performer_features(4, rng=0))
