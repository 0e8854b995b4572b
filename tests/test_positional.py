"""Absolute positions: sinusoidal, and random to be learned."""

import math

import numpy as np
import pytest
from array_api_compat import device as device_of

from attention_xp import learned_positional_encoding, positional_encoding
from tests._assertions import assert_close, dtype_name
from tests._backends import to_numpy
from tests._generators import KINDS, source
from tests._raw import raw_namespace


def formula(seq_len, d_model, n=10000.0):
    """The encoding entry by entry."""
    table = np.zeros((seq_len, d_model))
    for p in range(seq_len):
        for column in range(d_model):
            angle = p / n ** ((column - column % 2) / d_model)
            table[p, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


@pytest.mark.parametrize(("seq_len", "d_model"), [(6, 8), (6, 7), (1, 1), (3, 2), (0, 4), (4, 0)])
def test_sine_on_even_and_cosine_on_odd_columns(library, xp, device, seq_len, d_model):
    actual = positional_encoding(seq_len, d_model, xp=xp, dtype="float32", device=device)
    assert_close(actual, formula(seq_len, d_model), library)


@pytest.mark.parametrize("n", [100, 10000.0, 5e5])
def test_the_base(library, xp, device, n):
    actual = positional_encoding(9, 6, n, xp=xp, dtype="float32", device=device)
    assert_close(actual, formula(9, 6, n), library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype(library, xp, device, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    for given in (dtype, getattr(xp, dtype)):
        actual = positional_encoding(5, 6, xp=xp, dtype=given, device=device)
        assert_close(actual, formula(5, 6), library, dtype=dtype)


def test_distant_positions_keep_their_digits(library, xp, device):
    actual = positional_encoding(20001, 4, xp=xp, dtype="float32", device=device)
    angles = 20000.0 / 10000.0 ** np.asarray([0.0, 0.5])
    expected = np.stack([np.sin(angles), np.cos(angles)], axis=-1).ravel()
    np.testing.assert_allclose(to_numpy(actual)[-1], expected, atol=1e-6)


def test_raw_modules_are_welcome(library, device):
    actual = positional_encoding(5, 6, xp=raw_namespace(library), dtype="float32", device=device)
    assert_close(actual, formula(5, 6), library)
    actual = learned_positional_encoding(5, 6, rng=0, xp=raw_namespace(library), dtype="float32", device=device)
    assert dtype_name(actual.dtype) == "float32"


def test_numpy_is_the_default():
    for table in (positional_encoding(3, 4), learned_positional_encoding(3, 4)):
        assert type(table) is np.ndarray
        assert table.dtype == np.float64


@pytest.mark.parametrize("function", [positional_encoding, learned_positional_encoding])
def test_default_dtype_and_device(xp, device, function):
    options = {} if function is positional_encoding else {"rng": 0}
    table = function(3, 4, xp=xp, device=device, **options)
    assert table.dtype == xp.empty(0, device=device).dtype
    assert device_of(table) == device


def test_learned_positions_are_normal_with_deviation_001(library, xp, device):
    table = learned_positional_encoding(100, 101, rng=0, xp=xp, dtype="float32", device=device)
    assert tuple(table.shape) == (100, 101)
    assert dtype_name(table.dtype) == "float32"
    z = np.sort(to_numpy(table).astype(np.float64).ravel() * 100.0)
    assert abs(z.mean()) < 5.0 / z.size**0.5
    assert abs(z.std() - 1.0) < 5.0 / (2 * z.size) ** 0.5
    share = np.arange(1, z.size + 1) / z.size
    normal_share = np.asarray([0.5 * (1.0 + math.erf(x / math.sqrt(2.0))) for x in z])
    assert np.abs(share - normal_share).max() < 1.95 / z.size**0.5  # Kolmogorov and Smirnov, 0.1 %


def test_a_seed_gives_the_same_positions_on_every_backend(library, xp, device):
    expected = learned_positional_encoding(5, 6, rng=4, dtype="float32")
    actual = learned_positional_encoding(5, 6, rng=4, xp=xp, dtype="float32", device=device)
    assert_close(actual, expected, library)
    other = learned_positional_encoding(5, 6, rng=5, xp=xp, dtype="float32", device=device)
    assert (to_numpy(other) != to_numpy(actual)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_of_randomness(library, xp, device, kind):
    if source(library, kind) is None:
        pytest.skip(f"{library.value} has no {kind}")
    first, again = (
        learned_positional_encoding(5, 6, rng=source(library, kind), xp=xp, dtype="float32", device=device)
        for _ in range(2)
    )
    assert_close(first, to_numpy(again), library)


@pytest.mark.backends("jax")
def test_jax_needs_a_key(xp):
    with pytest.raises(ValueError, match=r"rng.*key"):
        learned_positional_encoding(5, 6, xp=xp)
