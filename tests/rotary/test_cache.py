"""Tables of cosines and sines: the same as without, row by row."""

import importlib

import numpy as np
import pytest
from array_api_compat import device as device_of

from attention_xp import RotaryCache, YarnScaling, rotary_cache, rotary_embedding
from tests._assertions import assert_close, assert_equal, dtype_name
from tests._backends import to_numpy
from tests._inputs import normal

OPTIONS = {
    "plain": {},
    "base": {"base": 100.0},
    "scaling": {"scaling": YarnScaling(4.0, 8)},
}


@pytest.mark.with_nan
@pytest.mark.parametrize("sections", [None, (1, 1, 2)])
def test_positions_that_a_table_has_not_give_nan(library, make, xp, device, sections):
    """Also negative ones, which count from the end of an array."""
    x, positions = make(normal(5, 8)), np.asarray([3, -1, 0, 10, 9])
    options = {} if sections is None else {"sections": sections}
    given = make(positions if sections is None else np.stack([positions] * 3), "int32")
    turned = to_numpy(rotary_embedding(x, given, cache=rotary_cache(10, 8, xp=xp, device=device), **options))
    expected = to_numpy(rotary_embedding(x, given, **options))
    assert np.isnan(turned[[1, 3]]).all()
    np.testing.assert_allclose(turned[[0, 2, 4]], expected[[0, 2, 4]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_table_of_the_first_positions(library, make, xp, device, options):
    x = make(normal(2, 3, 5, 9))
    cache = rotary_cache(20, 8, xp=xp, device=device, **options)
    expected = to_numpy(rotary_embedding(x, rotary_dim=8, **options))
    assert_close(rotary_embedding(x, cache=cache), expected, library)
    positions = make(np.asarray([[0, 7, 7, 19, 2], [3, 1, 4, 1, 5]]))
    expected = to_numpy(rotary_embedding(x, positions, rotary_dim=8, **options))
    assert_close(rotary_embedding(x, positions, cache=cache), expected, library)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 5)], ids=str)
def test_a_table_of_given_positions(library, make, shape):
    x = make(normal(2, 3, 5, 8))
    positions = make(np.random.default_rng(0).integers(0, 99, shape))
    cache = rotary_cache(positions, 8)
    assert tuple(cache.cos.shape) == tuple(cache.sin.shape) == (*shape, 4)
    expected = to_numpy(rotary_embedding(x, positions))
    assert_close(rotary_embedding(x, cache=cache), expected, library)


def test_rows_by_sections(library, make, xp, device):
    x = make(normal(2, 3, 5, 8))
    positions = make(np.random.default_rng(0).integers(0, 20, (3, 2, 5)))
    cache = rotary_cache(20, 8, xp=xp, device=device)
    expected = to_numpy(rotary_embedding(x, positions, sections=(1, 1, 2)))
    assert_close(rotary_embedding(x, positions, sections=(1, 1, 2), cache=cache), expected, library)
    whole = rotary_cache(positions, 8, sections=(1, 1, 2))
    assert_close(rotary_embedding(x, cache=whole), expected, library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_and_device(library, make, xp, device, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    angles = np.arange(5)[:, None] * 10000.0 ** (-np.arange(4) / 4.0)
    for given in (dtype, getattr(xp, dtype)):
        cache = rotary_cache(5, 8, xp=xp, dtype=given, device=device)
        assert isinstance(cache, RotaryCache)
        assert_close(cache.cos, np.cos(angles), library, dtype=dtype)
        assert_close(cache.sin, np.sin(angles), library, dtype=dtype)
        assert_close(rotary_cache(make(np.arange(5)), 8, dtype=given).cos, np.cos(angles), library, dtype=dtype)


def test_a_table_is_float32_unless_told(library, make, xp, device):
    for cache in (rotary_cache(5, 8, xp=xp, device=device), rotary_cache(make(np.arange(5)), 8)):
        assert dtype_name(cache.cos.dtype) == dtype_name(cache.sin.dtype) == "float32"
        assert device_of(cache.sin) == device
    assert type(rotary_cache(5, 8).cos) is np.ndarray


def test_no_positions(library, make, xp, device):
    assert tuple(rotary_cache(0, 8, xp=xp, device=device).cos.shape) == (0, 4)
    assert tuple(rotary_cache(make(np.zeros((2, 0), np.int32)), 8).cos.shape) == (2, 0, 4)


def test_the_sixteen_bit_input_meets_wide_angles(library, make):
    if "float16" not in library.dtypes():
        pytest.skip(f"{library.value} has no float16")
    x, positions = make(np.ones((3, 8)), "float16"), make(np.asarray([1, 2001, 60001]))
    wide = rotary_embedding(make(np.ones((3, 8))), positions)
    assert_close(rotary_embedding(x, positions), to_numpy(wide), library, dtype="float16")


@pytest.mark.backends("jax")
def test_a_cache_is_a_pytree(library, make):
    jax, x = importlib.import_module("jax"), make(normal(5, 8))
    cache = rotary_cache(make(np.arange(5)), 8)
    attend = jax.jit(lambda x, cache: rotary_embedding(x, cache=cache))
    assert_close(attend(x, cache), to_numpy(rotary_embedding(x)), library)


def test_values_of_a_cache_of_ones_and_zeros(library, make):
    x = make(normal(2, 5, 8))
    still = RotaryCache(make(np.ones((5, 4))), make(np.zeros((5, 4))))
    assert_equal(rotary_embedding(x, cache=still), to_numpy(x), library, dtype="float32")
