"""Outputs of another dtype than that of the query."""

import numpy as np
import pytest

from attention_xp import flash_attention, merge_attention
from tests._assertions import dtype_name
from tests._autodiff import gradients
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests.reference import attention

PARTS = 64


def narrow_arrays(library, dtype):
    return [library.array(x, dtype) for x in inputs((2, 2, 5, 8), (2, 1, 2 * PARTS, 8))]


@pytest.mark.backends("numpy", "torch", "jax", "cupy")
def test_many_narrow_parts_are_as_exact_as_one_call(library, impl):
    dtype = "bfloat16" if "bfloat16" in library.dtypes() else "float16"
    query, key, value = narrow_arrays(library, dtype)
    pieces = [slice(2 * i, 2 * i + 2) for i in range(PARTS)]

    def deviation(output):
        expected, *_ = attention(*(to_numpy(x) for x in (query, key, value)))
        return np.abs(to_numpy(output).astype("float64") - expected).max()

    def merged(**options):
        parts = [
            flash_attention(query, key[..., p, :], value[..., p, :], return_lse=True, impl=impl, **options)
            for p in pieces
        ]
        return merge_attention(*zip(*parts, strict=True))[0]

    wide = merged(output_dtype="float32")
    assert dtype_name(wide.dtype) == "float32"
    xp = library.namespace()
    once = flash_attention(query, key, value, impl=impl)
    assert deviation(wide) < 1e-5  # that of the parts in 16 bits is about a thousand times as large
    assert deviation(xp.astype(wide, query.dtype)) <= deviation(once) * 1.01
    assert deviation(merged()) > 1e-4


def test_the_output_has_the_dtype_of_its_name_or_of_the_library(library, impl):
    arrays = [library.array(x, "float32") for x in inputs((2, 3, 4))]
    xp, options = library.namespace(), {"impl": impl, "return_lse": True}
    name = library.dtypes()[0 if library.dtypes()[0] != "float32" else -1]
    for given in (name, getattr(xp, name)):
        output, lse = flash_attention(*arrays, output_dtype=given, **options)
        assert output.dtype == getattr(xp, name)
        assert lse.dtype == xp.float32
    expected = flash_attention(*arrays, impl=impl)
    np.testing.assert_allclose(to_numpy(output), to_numpy(expected), rtol=2e-3, atol=1e-3)
    same = flash_attention(*arrays, impl=impl, output_dtype="float32")
    np.testing.assert_array_equal(to_numpy(same), to_numpy(expected))


@pytest.mark.backends("torch", "jax")
def test_gradients_come_back_in_the_dtype_of_the_arguments(library, impl):
    arrays = [to_numpy(x) for x in narrow_arrays(library, "bfloat16")]
    xp = library.namespace()

    def total(*arrays):
        narrow = [xp.astype(x, xp.bfloat16) for x in arrays]
        return flash_attention(*narrow, impl=impl, is_causal=True, query_offset=3, output_dtype="float32") ** 2

    def expected(*arrays):
        return flash_attention(*arrays, impl=impl, is_causal=True, query_offset=3) ** 2

    for found, wanted in zip(gradients(library, total)(*arrays), gradients(library, expected)(*arrays), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1.6e-2, atol=2e-2)


@pytest.mark.backends("torch")
def test_it_compiles(library, impl):
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    arrays = narrow_arrays(library, "bfloat16")
    for given in ("float32", torch.float32):
        attend = torch.compile(
            lambda *xs: flash_attention(*xs, impl=impl, output_dtype=given),  # noqa: B023
            fullgraph=True,
            backend="eager",
        )
        torch.testing.assert_close(attend(*arrays), flash_attention(*arrays, impl=impl, output_dtype=given))


@pytest.mark.backends("torch")
def test_a_fused_kernel_is_not_asked_for_what_it_rounds(library):
    arrays = narrow_arrays(library, "bfloat16")
    with pytest.raises(ValueError, match="knows no output_dtype but that of the query"):
        flash_attention(*arrays, impl="fused", output_dtype="float32")
    assert flash_attention(*arrays, impl="fused", output_dtype="bfloat16").dtype == arrays[0].dtype
    assert dtype_name(flash_attention(*arrays, output_dtype="float32").dtype) == "float32"


@pytest.mark.parametrize("given", ["int32", "bool"])
def test_wrong_dtypes(given):
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match=f"output_dtype '{given}' cannot .* expected one of float16, float32, float64"):
        flash_attention(x, x, x, output_dtype=given)


@pytest.mark.parametrize("given", [3, 2.5, np.ones(2), ["float32"]], ids=repr)
def test_what_is_no_dtype_is_refused(library, given):
    x = library.array(normal(2, 3, 4))
    with pytest.raises(TypeError, match="output_dtype must be a dtype or the name of one, got "):
        flash_attention(x, x, x, output_dtype=given)
