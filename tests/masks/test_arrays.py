"""Every rule as an array, against a plain double loop."""

import numpy as np
import pytest

from attention_xp.masks import BlockMask, CausalMask, GlobalMask, LengthMask, PrefixMask, SegmentMask, WindowMask
from tests._assertions import assert_equal
from tests._backends import to_numpy
from tests._quick import some_rare
from tests._raw import raw_namespace
from tests.masks._cases import ALIKE, CASES, LENGTHS

cases = pytest.mark.parametrize("case", some_rare({n: (case,) for n, case in CASES.items()}, ALIKE.__contains__))


def expected(case, Sq, Sk, offset=0):
    """The array, without the leading axes that the mask does not depend on."""
    batch, heads = case.lead or (1, 1)
    table = case.table(batch, heads, range(offset, offset + Sq), range(Sk))
    return table if case.lead else table[0, 0]


@cases
@pytest.mark.parametrize(
    ("Sq", "Sk", "offset"), [(11, 13, 0), (4, 9, 5), (5, 3, -2), (1, 12, 40), (0, 3, 0), (3, 0, 0)]
)
def test_every_pair(library, xp, device, make, case, Sq, Sk, offset):
    array = case.build(make).to_array(Sq, Sk, offset, xp=xp, device=device)
    assert_equal(array, expected(case, Sq, Sk, offset), library)


@cases
def test_numpy_arrays_serve_every_library(library, xp, device, case):
    array = case.build(np.asarray).to_array(6, 7, xp=xp, device=device)
    assert_equal(array, expected(case, 6, 7), library)


def test_the_library_of_the_arrays_is_the_default(library, make):
    assert_equal(LengthMask(make(LENGTHS)).to_array(1, 3), [[[[1, 1, 0]]], [[[1, 1, 1]]]], library, dtype="bool")


def test_numpy_is_the_default_without_arrays():
    assert type(CausalMask().to_array(2, 2)) is np.ndarray


def test_raw_namespaces_are_taken(library, device):
    array = CausalMask().to_array(2, 3, 1, xp=raw_namespace(library), device=device)
    assert_equal(array, [[1, 1, 0], [1, 1, 1]], library, dtype="bool")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_additive(library, xp, device, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"no {dtype}")
    array = CausalMask().to_array(2, 2, xp=xp, device=device, dtype=dtype)
    assert_equal(array, [[0.0, -np.inf], [0.0, 0.0]], library, dtype=dtype)


def test_half_precision_by_name():
    assert CausalMask().to_array(2, 2, dtype="float16").dtype == np.float16


def test_more_leading_axes():
    lengths = np.asarray([[1, 2, 3], [0, 1, 2]])
    array = LengthMask(lengths).to_array(2, 4)
    assert array.shape == (2, 3, 1, 2, 4)
    np.testing.assert_array_equal(array[:, :, 0, 1].sum(-1), lengths)


def test_a_zero_dimensional_length_belongs_to_no_batch():
    assert LengthMask(np.asarray(2)).to_array(1, 3).tolist() == [[True, True, False]]


@pytest.mark.parametrize("mask", [SegmentMask(np.zeros(0, int)), GlobalMask(np.zeros(0, bool))])
def test_arrays_without_positions_allow_nothing(mask):
    assert not mask.to_array(2, 2).any()
    assert mask.density(2, 2) == 0.0
    assert str(mask).count("\n") == 0


def test_layouts_without_blocks_allow_nothing():
    assert not BlockMask(np.zeros((0, 3), bool), 2).to_array(2, 2).any()


def test_leading_axes_broadcast():
    mask = SegmentMask(np.zeros((3, 1, 4), int), np.zeros((2, 4), int))
    assert mask.to_array(4, 4).shape == (3, 2, 1, 4, 4)
    assert (mask & BlockMask(np.ones((5, 2, 2), bool), 2)).to_array(4, 4).shape == (3, 2, 5, 4, 4)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
def test_lengths_of_any_integer_dtype(library, xp, device, make, dtype):
    if library.like("jax") and dtype == "int64":
        pytest.skip("32-bit integers only")
    array = LengthMask(make(LENGTHS, dtype)).to_array(1, 8, xp=xp, device=device)
    np.testing.assert_array_equal(to_numpy(array)[:, 0, 0].sum(-1), LENGTHS)


@pytest.mark.backends("torch", "jax", "cupy", "strict")
def test_arrays_of_another_library_are_refused(make):
    with pytest.raises(
        TypeError, match=r"lengths is an array of .*: expected NumPy or the library of the query, numpy"
    ):
        LengthMask(make(LENGTHS)).to_array(2, 2, xp=np)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2.0, 3), TypeError, "Sq must be an int"),
        ((2, -1), ValueError, "Sk must be at least 0"),
        ((2, 3, None), TypeError, "query_offset must be an int"),
    ],
)
def test_sizes_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        WindowMask(1, 1).to_array(*arguments)
    with pytest.raises(error, match=message):
        WindowMask(1, 1).density(*arguments)


def test_dtypes_are_checked():
    with pytest.raises(ValueError, match="dtype 'int32' cannot be used"):
        CausalMask().to_array(2, 2, dtype="int32")


@pytest.mark.backends("numpy", "torch")
def test_every_pair_has_memory_of_its_own(xp):
    array = PrefixMask(2).to_array(2, 3, xp=xp)
    array[0, 0] = False
    assert array.tolist() == [[False, True, False], [True, True, False]]
