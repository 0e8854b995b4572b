"""Masks as arrays: padding and causal, additive and boolean."""

import numpy as np
import pytest
from array_api_compat import device as device_of

from attention_xp import create_causal_mask, create_look_ahead_mask, create_padding_mask
from tests._assertions import assert_equal, dtype_name
from tests._raw import raw_namespace

TOKENS = np.asarray([[7, 3, 0, 0], [4, 0, 1, 0]])
INF = np.inf


def test_padding_mask_is_additive(library, make, xp):
    expected = np.where(TOKENS == 0, -INF, 0.0).reshape(2, 1, 1, 4)
    assert_equal(create_padding_mask(make(TOKENS), dtype=xp.float32), expected, library, dtype="float32")


def test_padding_mask_is_boolean_on_request(library, make, xp):
    expected = (TOKENS != 0).reshape(2, 1, 1, 4)
    assert_equal(create_padding_mask(make(TOKENS), dtype="bool"), expected, library)
    assert_equal(create_padding_mask(make(TOKENS), dtype=xp.bool), expected, library)


@pytest.mark.parametrize("pad_token", [0, 1, -1, 7])
def test_any_token_may_be_the_padding(library, make, pad_token):
    expected = np.not_equal(TOKENS, pad_token).reshape(2, 1, 1, 4)
    assert_equal(create_padding_mask(make(TOKENS), pad_token, dtype="bool"), expected, library)


@pytest.mark.parametrize(("pad_token", "dtype"), [(-1, "uint8"), (2**32, "int32"), (2**70, "int32")])
def test_padding_that_the_dtype_cannot_hold_is_nowhere(library, make, pad_token, dtype):
    tokens = make(np.asarray([[0, 255 if dtype == "uint8" else -1]]), dtype)
    assert_equal(create_padding_mask(tokens, pad_token, dtype="bool"), np.full((1, 1, 1, 2), True), library)


def test_padding_token_of_numpy(library, make):
    expected = np.not_equal(TOKENS, 7).reshape(2, 1, 1, 4)
    assert_equal(create_padding_mask(make(TOKENS), np.int64(7), dtype="bool"), expected, library)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8"])
def test_tokens_of_any_integer_dtype(library, make, dtype):
    expected = (TOKENS != 0).reshape(2, 1, 1, 4)
    assert_equal(create_padding_mask(make(TOKENS, dtype), dtype="bool"), expected, library)


def test_padding_mask_has_the_default_dtype(make, xp, device):
    mask = create_padding_mask(make(TOKENS))
    assert mask.dtype == xp.empty(0, device=device).dtype
    assert device_of(mask) == device


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_padding_mask_of_nothing(library, make, shape):
    expected = np.zeros((shape[0], 1, 1, shape[1]))
    assert_equal(create_padding_mask(make(np.zeros(shape, int)), dtype="float32"), expected, library, dtype="float32")


@pytest.mark.parametrize("size", [0, 1, 4])
def test_causal_mask_is_additive(library, xp, device, size):
    expected = np.where(np.tri(size, dtype=bool), 0.0, -INF)[None, None]
    actual = create_causal_mask(size, xp=xp, dtype="float32", device=device)
    assert_equal(actual, expected, library, dtype="float32")


def test_causal_mask_is_boolean_on_request(library, xp, device):
    expected = np.tri(4, dtype=bool)[None, None]
    assert_equal(create_causal_mask(4, xp=xp, dtype="bool", device=device), expected, library)
    assert_equal(create_causal_mask(4, xp=xp, dtype=xp.bool, device=device), expected, library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("by_name", [True, False], ids=["name", "dtype"])
def test_dtypes_by_name_and_as_objects(library, xp, device, dtype, by_name):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    mask = create_causal_mask(3, xp=xp, dtype=dtype if by_name else getattr(xp, dtype), device=device)
    assert dtype_name(mask.dtype) == dtype


def test_raw_modules_are_welcome(library, device):
    expected = np.tri(3, dtype=bool)[None, None]
    actual = create_causal_mask(3, xp=raw_namespace(library), dtype="bool", device=device)
    assert_equal(actual, expected, library)


def test_numpy_is_the_default():
    mask = create_causal_mask(3)
    assert type(mask) is np.ndarray
    assert mask.dtype == np.float64
    assert create_causal_mask(3, dtype=np.dtype("float32")).dtype == np.float32


def test_causal_mask_has_the_default_dtype(xp, device):
    mask = create_causal_mask(3, xp=xp, device=device)
    assert mask.dtype == xp.empty(0, device=device).dtype
    assert device_of(mask) == device


def test_look_ahead_is_another_name_of_causal():
    assert create_look_ahead_mask is create_causal_mask
