"""The slopes of ALiBi."""

import numpy as np
import pytest

from attention_xp import alibi_slopes
from tests._assertions import assert_close
from tests._raw import raw_namespace

HEADS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 40, 71, 112, 128]


def by_recursion(heads):
    """The slopes as the paper's appendix has them in words."""
    if heads & (heads - 1) == 0:
        return [2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)]
    power = 2 ** int(np.log2(heads))
    return by_recursion(power) + by_recursion(2 * power)[::2][: heads - power]


@pytest.mark.parametrize("heads", HEADS)
def test_slopes(library, xp, device, heads):
    actual = alibi_slopes(heads, xp=xp, dtype="float32", device=device)
    assert_close(actual, by_recursion(heads), library)


@pytest.mark.parametrize("heads", HEADS)
def test_slopes_are_those_of_bloom_and_mpt(library, xp, device, heads):
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    mpt = pytest.importorskip("transformers.models.mpt.modeling_mpt")
    actual = alibi_slopes(heads, xp=xp, dtype="float32", device=device)
    distances = bloom.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)
    assert_close(actual, distances[:, 0, 1].numpy(), library)
    assert_close(actual, -mpt.build_mpt_alibi_tensor(heads, 2)[:, 0, 0].numpy(), library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype(library, xp, device, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    for given in (dtype, getattr(xp, dtype)):
        assert_close(alibi_slopes(6, xp=xp, dtype=given, device=device), by_recursion(6), library, dtype=dtype)


def test_defaults(library, device):
    raw = raw_namespace(library)
    assert alibi_slopes(6, xp=raw, device=device).dtype == library.namespace().empty(0, device=device).dtype
    assert type(alibi_slopes(6)) is np.ndarray
    assert alibi_slopes(6).dtype == np.float64
