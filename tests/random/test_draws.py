"""Dropout of an array, and the rules about sources of randomness."""

import numpy as np
import pytest

from attention_xp import dropout, scaled_dot_product_attention
from attention_xp._backend.libraries import device
from attention_xp._random import in_place as _random_in_place
from attention_xp._random.draws import random_bits
from attention_xp._random.in_place import Survivors
from attention_xp._random.survivors import smallest_draw, survivors, survivors_one_by_one
from attention_xp._random.threefry import threefry
from tests._assertions import assert_close, assert_equal, dtype_name
from tests._backends import to_numpy
from tests._generators import KINDS, source
from tests._inputs import normal


def test_rate_zero_returns_the_values(library, make):
    x = normal(3, 4)
    assert_equal(dropout(make(x), 0.0), x, library, dtype="float32")


@pytest.mark.backends("torch")
def test_rate_zero_is_differentiable_without_a_warning(make):
    x = make(normal(3, 4)).requires_grad_()
    dropout(x, 0.0).sum().backward()
    assert to_numpy(x.grad).tolist() == np.ones((3, 4)).tolist()


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_kept_entries_are_scaled_up(library, make, rate):
    x = 1.0 + np.abs(normal(8, 50))
    actual = dropout(make(x), rate, rng=1)
    kept = to_numpy(actual) != 0.0
    assert_close(actual, np.where(kept, x / (1.0 - rate), 0.0), library)
    assert abs(kept.mean() - (1.0 - rate)) < 5.0 * (rate * (1.0 - rate) / x.size) ** 0.5


@pytest.mark.parametrize("seed", [0, 5, 2**63])
def test_a_seed_drops_the_same_entries_on_every_backend(library, make, seed):
    expected = dropout(np.ones((6, 7)), 0.5, rng=seed)
    assert_equal(dropout(make(np.ones((6, 7))), 0.5, rng=seed), expected, library, dtype="float32")


def test_the_draw_depends_on_the_flat_index(library, make):
    flat = to_numpy(dropout(make(np.ones(24)), 0.5, rng=2))
    assert_equal(dropout(make(np.ones((2, 3, 4))), 0.5, rng=2), flat.reshape(2, 3, 4), library)
    assert_equal(dropout(make(np.ones(10)), 0.5, rng=2), flat[:10], library)


ZEROS, ONES, PI = (0, 0, 0, 0), (-1, -1, -1, -1), (0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3 - 2**32)
PUBLISHED = [
    (13, ZEROS, (0x9D1C5EC6, 0x8BD50731)),
    (13, ONES, (0xFD36D048, 0x2D17272C)),
    (13, PI, (0xBA3E4725, 0xF27D669E)),
    (20, ZEROS, (0x6B200159, 0x99BA4EFE)),
    (20, ONES, (0x1CB996FC, 0xBB002BE7)),
    (20, PI, (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("rounds", "words", "expected"), PUBLISHED)
def test_threefry_gives_the_published_numbers(make, rounds, words, expected):
    """The known answers of Threefry-2x32 that Salmon et al. publish with Random123."""
    counter = tuple(make([word], "int32") for word in words[2:])
    drawn = threefry(words[:2], counter, rounds=rounds)
    assert tuple(int(to_numpy(word)[0]) % 2**32 for word in drawn) == expected


@pytest.mark.parametrize("first", [(0, 0), (6, 7), (7, 6), (3, 2**31 - 9), (2**31 - 9, 5)])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 4), (300, 5), (5, 300), (3, 0)])
def test_every_way_to_draw_gives_the_same(make, xp, monkeypatch, first, sizes):
    """A rectangle on any library, one on NumPy in several pieces, and position by position."""
    monkeypatch.setattr(_random_in_place, "_BLOCKS", 200)
    sizes = tuple(min(size, 2**31 - start) for start, size in zip(first, sizes, strict=True))
    key, rate = (1, 2**31 - 1), 0.3
    rows, columns = (np.arange(start, start + size) for start, size in zip(first, sizes, strict=True))
    positions = make(rows[:, None], "int32"), make(columns[None, :], "int32")
    expected = to_numpy(survivors_one_by_one(key, rate, *positions, xp=xp))
    words = tuple(make([[word]], "int32") for word in key)
    whole = to_numpy(survivors(words, rate, first, sizes, xp=xp, device=device(positions[1])))
    cut = tuple(slice(start & 1, (start & 1) + size) for start, size in zip(first, sizes, strict=True))
    np.testing.assert_array_equal(whole[cut], expected)
    np.testing.assert_array_equal(Survivors(rate).of_tile([key, (5, 6)], first, sizes)[0], expected)


@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.3, 0.5, 1.0 - 2.0**-53])
def test_the_rate_of_attention_is_kept_to_half_a_draw(rate):
    assert abs(smallest_draw(rate) / 2**16 - rate) <= (2.0**-17 if rate < 1.0 - 2.0**-17 else 2.0**-16)


def test_bits_are_uniform_and_independent(make, xp):
    """Each bit of both words of a block is a fair coin, and tells nothing about any other."""
    blocks = 2**14
    words = random_bits((5, 6), 2 * blocks, xp=xp, device=device(make([0.0])))
    both = to_numpy(words).reshape(blocks, 2).astype(np.uint32)
    bits = (both[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1  # (blocks, 2, 32)
    signs = 2.0 * bits.reshape(blocks, 64) - 1.0
    limit = 5.0 / blocks**0.5
    assert np.abs(signs.mean(0)).max() < limit
    assert np.abs(signs.T @ signs / blocks - np.eye(64)).max() < limit
    assert np.abs(signs[1:].T @ signs[:-1] / blocks).max() < limit  # of neighbouring blocks


def test_known_numbers():
    """The numbers that a seed gives are part of the contract: they do not change with a release."""
    assert dropout(np.ones(8), 0.5, rng=2).tolist() == [2.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0, 0.0]
    x = np.zeros((1, 2, 3, 5))
    kept = scaled_dot_product_attention(x, x, x, None, 0.5, rng=2)[1] != 0.0
    assert kept.astype(int).tolist() == [[[[1, 0, 0], [1, 1, 1], [0, 1, 1]], [[1, 0, 0], [1, 1, 1], [0, 1, 0]]]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_of_randomness(library, make, kind):
    rng, twin = source(library, kind), source(library, kind)
    if rng is None:
        pytest.skip(f"{library.value} has no {kind}")
    actual = dropout(make(np.ones(200)), 0.5, rng=rng)
    assert 60 < int((to_numpy(actual) != 0.0).sum()) < 140
    assert_equal(dropout(make(np.ones(200)), 0.5, rng=twin), to_numpy(actual), library)


@pytest.mark.backends("numpy", "strict", "torch", "cupy")
def test_no_source_draws_fresh_entropy(make):
    first, second = (to_numpy(dropout(make(np.ones(100)), 0.5)) for _ in range(2))
    assert (first != second).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(library, make, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    assert dtype_name(dropout(make(np.ones(5), dtype), 0.5, rng=1).dtype) == dtype


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_shapes_without_extent(library, make, shape):
    actual = dropout(make(np.ones(shape)), 0.5, rng=1)
    assert tuple(actual.shape) == shape


def test_the_input_is_not_written_to(make):
    x = make(np.ones(50))
    dropout(x, 0.5, rng=1)
    np.testing.assert_array_equal(to_numpy(x), np.ones(50))


@pytest.mark.with_nan
def test_nan_is_dropped_like_any_entry(library, make):
    actual = to_numpy(dropout(make(np.full(50, np.nan)), 0.5, rng=1))
    expected = dropout(np.ones(50), 0.5, rng=1) == 0.0
    np.testing.assert_array_equal(actual == 0.0, expected)


def test_a_generator_of_another_library_is_refused(library, make):
    is_numpy = library.like("numpy", "strict")
    foreign = pytest.importorskip("torch").Generator() if is_numpy else np.random.default_rng(0)
    with pytest.raises(TypeError, match=r"rng.*library"):
        dropout(make(np.ones(5)), 0.5, rng=foreign)


@pytest.mark.backends("numpy", "torch")
def test_a_jax_key_is_refused_elsewhere(make):
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match=r"rng.*jax"):
        dropout(make(np.ones(5)), 0.5, rng=jax.random.key(0))


@pytest.mark.backends("torch:gpu")
def test_a_generator_on_another_device_is_refused(make):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"rng is on cpu.*cuda"):
        dropout(make(np.ones(5)), 0.5, rng=torch.Generator())
