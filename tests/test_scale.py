"""A scale that is an array, such as a learned temperature: as good as a number, and with a gradient."""

import importlib

import numpy as np
import pytest

import attention_xp as ax
from tests._assertions import assert_close, dtype_name, tolerance
from tests._autodiff import check, gradients
from tests._backends import to_numpy
from tests._inputs import normal
from tests._transforms import assert_same, compiled_and_mapped

Q, K, V = normal(1, 2, 5, 4), normal(1, 2, 7, 4, seed=1), normal(1, 2, 7, 4, seed=2)
IMPLS = pytest.mark.parametrize("impl", ["dense", "tiled", "auto"])
GRAD = normal(1, 2, 5, 4, seed=3)
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
OPTIONS = {
    "none": {},
    "causal": {"is_causal": True, "query_offset": 2},
    "mask": {"mask": normal(2, 1, 5, 7) > -0.5},
    "lengths": {"key_lengths": np.asarray([7, 3]), "query_offset": np.asarray([0, 2]), "window": 3},
    "soft cap, bias, sinks": {"softcap": 1.0, "bias": normal(4, 5, 7), "sinks": normal(4)},
    "dropout": {"dropout_rate": 0.5, "rng": 3},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def attend(q, k, v, scale, impl="auto", **options):
    tile = {"tile": (2, 3)} if impl == "tiled" else {}
    return ax.flash_attention(q, k, v, scale=scale, impl=impl, **tile, **options)


@IMPLS
def test_it_is_as_good_as_a_number(library, impl):
    for dtype in library.dtypes():
        made = [library.array(x, dtype) for x in (Q, K, V)]
        options = {"softcap": 2.0, "is_causal": True, "query_offset": 2}
        output = attend(*made, library.array(0.7, dtype), impl, **options)
        expected = attend(*map(to_numpy, made), float(to_numpy(library.array(0.7, dtype))), "dense", **options)
        assert_close(output, expected, library, dtype=dtype, **tolerance(dtype))


def test_the_query_is_not_rounded_with_it(library, make):
    """In 16 bits, with scores so large that a rounded query would show: the result is that of a number."""
    made = [library.array(x, "float16") for x in (4.0 * Q, 4.0 * K, V)] if "float16" in library.dtypes() else []
    for impl in ("dense", "tiled", "auto") if made else ():
        expected = to_numpy(attend(*made, 3.3, impl))
        actual = attend(*made, library.array(3.3, "float32"), impl)
        assert dtype_name(actual.dtype) == "float16"
        np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-3, atol=1e-3)


def test_large_scores(library, make):
    """NumPy leaves the largest score out of the softmax where a bound on the scores is small: the scale counts."""
    made = [make(x) for x in (Q, K, V)]
    for impl in ("dense", "tiled"):
        assert_close(
            attend(*made, make(300.0), impl), to_numpy(attend(*made, 300.0, impl)), library, rtol=1e-3, atol=1e-3
        )


@FORWARD_MODE
@pytest.mark.backends("torch", "jax")
@IMPLS
def test_derivatives(library, impl):
    check(library, lambda q, k, v, s: attend(q, k, v, s, impl, softcap=2.0), Q, K, V, np.asarray(0.7))


@pytest.mark.backends("torch", "jax")
def test_its_gradient_has_its_dtype(library):
    """That of a float16 array, in calls that follow each other and after a change in place."""
    made = [library.array(x) for x in (Q, K, V)]
    if library.like("jax"):
        slope = importlib.import_module("jax").grad(lambda s: attend(*made, s, "tiled").sum())
        slopes = [slope(library.array(s, "float16")) for s in (0.5, 2.0)]
    else:
        torch = importlib.import_module("torch")
        scale, slopes = library.array(0.5, "float16").requires_grad_(), []
        for _ in range(2):
            slopes += torch.autograd.grad(attend(*made, scale, "tiled").sum(), [scale])
            with torch.no_grad():
                scale.mul_(4.0)
    step = 1e-3
    for slope, s in zip(slopes, (0.5, 2.0), strict=True):
        assert dtype_name(slope.dtype) == "float16"
        ends = [attend(*(x.astype("float64") for x in (Q, K, V)), s + sign * step).sum() for sign in (1, -1)]
        np.testing.assert_allclose(to_numpy(slope), (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=1e-3)


@pytest.mark.backends("torch", "jax")
@IMPLS
def test_compiled_and_mapped(library, impl):
    made, scales = [library.array(x) for x in (Q, K, V)], [0.5, 2.0]
    compiled, mapped = compiled_and_mapped(library, lambda s: attend(*made, s, impl))
    each = [attend(*made, s, impl) for s in scales]
    assert_same(compiled(library.array(scales[0])), each[0])
    np.testing.assert_allclose(
        to_numpy(mapped(library.array(np.asarray(scales)))), np.stack([to_numpy(x) for x in each]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_the_analytic_gradients(library, make, impl):
    made, scale = [make(x) for x in (Q, K, V)], make(0.7)
    outputs, vjps = zip(*(ax.attention_vjp(*made, scale=s, impl=impl) for s in (scale, 0.7)), strict=True)
    assert_close(outputs[0], to_numpy(outputs[1]), library)
    found, expected = (vjp(make(GRAD)) for vjp in vjps)
    for name in ("query", "key", "value"):
        assert_close(getattr(found, name), to_numpy(getattr(expected, name)), library)
    step = 1e-4
    ends = [(attend(*(x.astype("float64") for x in (Q, K, V)), 0.7 + sign * step) * GRAD).sum() for sign in (1, -1)]
    assert (to_numpy(found.query) * Q).sum() / 0.7 == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


def test_every_function(library, make):
    """Also those that see the options before there are heads, or that attend several times."""
    heads, x, scale = [make(v) for v in (Q, K, V)], make(normal(2, 6, 8)), make(0.7)
    packed, bounds = make(normal(6, 2, 4)), library.array(np.asarray([0, 2, 6]))
    params = ax.init_multi_head_params(8, 2, rng=0, xp=library.namespace(), device=library.device(), dtype="float32")

    def outcomes(s):
        return (
            *ax.attention_statistics(*heads[:2], scale=s, impl="tiled", tile=(2, 3)),
            ax.scaled_dot_product_attention(*heads, scale=s, impl="tiled")[1],
            ax.multi_head_self_attention(x, 2, 8, params=params, scale=s)[0],
            ax.varlen_attention(packed, packed, packed, bounds, scale=s),
        )

    for found, expected in zip(outcomes(scale), outcomes(0.7), strict=True):
        assert_close(found, to_numpy(expected), library)


@pytest.mark.backends("torch")
def test_torchs_kernel_takes_it_in_the_dtype_of_the_computation(library):
    made, scale = [library.array(x) for x in (Q, K, V)], library.array(0.7)
    assert_close(attend(*made, scale, "fused"), to_numpy(attend(*made, 0.7, "dense")), library)
    with pytest.raises(ValueError, match="scale as an array in 16 bits"):
        attend(*(x.half() for x in made), scale, "fused")


def test_narrow_numbers_of_numpy(make):
    made = [make(x) for x in (Q, K, V)]
    assert_same(attend(*made, np.float16(0.5)), attend(*made, 0.5))


@pytest.mark.backends("torch", "jax")
@pytest.mark.with_nan
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_padding_adds_nothing_to_its_gradient(library, impl):
    padded = Q.copy()
    padded[..., -1, :] = np.nan

    def loss(query, scale):
        return attend(query, library.array(K), library.array(V), scale, impl, query_lengths=Q.shape[-2] - 1)

    scale = np.asarray(0.5)
    for one, other in zip(*(gradients(library, loss)(query, scale)[1:] for query in (padded, Q)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
