"""The gradients of biases that are rules: by the libraries, by the product that each rule has, and by `attention_vjp`."""

import dataclasses
import importlib
import itertools

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention, scaled_dot_product_attention
from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from tests._assertions import assert_close
from tests._autodiff import check, gradients
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests.biases._cases import CASES

QKV = inputs((2, 4, 7, 8), (2, 2, 11, 8), (2, 2, 11, 5))
DIFFERENTIABLE = [name for name in CASES if name != "with exclusions"]
Q, K, V = inputs((2, 4, 9, 4), (2, 2, 11, 4), (2, 2, 11, 3))
G = normal(2, 4, 9, 3, seed=3)
ARRAYS = {AlibiBias: np.asarray([0.5, 0.25, 0.1, 0.05]), RelativePositionBias: normal(8, 4)}
OPTIONS = {"is_causal": True, "query_offset": 2, "softcap": 2.0}


@pytest.mark.backends("torch", "jax")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_its_arrays(library, impl, name):
    """Those of the array, carried on to the parameters by the vector-Jacobian product that NumPy has."""
    build, parameter = CASES[name].build, CASES[name].build(np.asarray).arrays[0]
    upstream = normal(2, 4, 7, 5)

    def attend(bias, q, k, v):
        return flash_attention(q, k, v, bias=bias, query_offset=2, is_causal=True, impl=impl, tile=(3, 4)) * made

    made = library.array(upstream)
    actual = gradients(library, lambda p, *qkv: attend(build(lambda _: p), *qkv))(parameter, *QKV)
    array = CASES[name].table(2, 4, range(2, 9), range(11))
    grads = gradients(library, attend)(array, *QKV)
    for one, other in zip(actual[1:], grads[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    step = 1e-3
    for i in np.ndindex(parameter.shape):
        moved = [np.array(parameter, np.float64) for _ in range(2)]
        moved[0][i] += step
        moved[1][i] -= step
        ahead, behind = (_values(build, m, 2) for m in moved)
        expected = (grads[0] * (ahead - behind) / (2 * step)).sum()
        np.testing.assert_allclose(actual[0][i], expected, atol=3e-3, rtol=2e-3)


def _values(build, parameter, offset):
    """The values of a bias for all pairs, in float64 NumPy."""
    region = _region(np.float64, offset)
    return np.broadcast_to(build(lambda _: parameter).values(region), (2, 4, 7, 11))


def _region(dtype, offset, make=np.asarray, starts=None, sizes=None, **options):
    problem = importlib.import_module("attention_xp._engine.problem.problem").Problem
    region = importlib.import_module("attention_xp._scores.region").Region
    made = [make(x.astype(dtype)) for x in QKV]
    whole = region.whole(problem.of(*made, None, 0.0, {"query_offset": offset, **options}))
    return whole if starts is None else whole._replace(starts=starts, sizes=sizes)


@pytest.mark.backends("torch", "jax")
@pytest.mark.parametrize("name", ["alibi", "alibi of items", "buckets", "of a user"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_second_derivatives(library, impl, name):
    if library.like("jax") and library.dtypes()[-1] != "float64":
        pytest.skip("needs float64")
    build = CASES[name].build

    def attend(p, q, k, v):
        return flash_attention(q, k, v, bias=build(lambda _: p), impl=impl, query_offset=1, tile=(2, 3))

    q, k, v = inputs((CASES[name].items, 4, 3, 2), (1, 4, 5, 2))
    check(library, attend, CASES[name].build(np.asarray).arrays[0].astype(float), q, k, v)


@pytest.mark.parametrize("offset", [0, 3, "each"])
@pytest.mark.parametrize(
    "name", ["alibi", "one slope", "alibi of items", "one slope for each item", "buckets", "buckets before"]
)
def test_its_own_vector_jacobian_product(library, make, name, offset):
    """The parts of all tiles sum up to numeric differences: values are linear in the parameters."""
    bias = CASES[name].build(make)
    offset = np.asarray([1, 4]) if offset == "each" else offset
    grad = normal(2, 4, 7, 11)
    total = np.zeros(bias.arrays[0].shape)
    for h in (0, 2):
        for i, j in ((0, 0), (0, 6), (5, 0), (5, 6)):
            rows, columns = min(5, 7 - i), min(6, 11 - j)
            where = (0, h, i, j), (2, 2, rows, columns)
            given = make(offset) if isinstance(offset, np.ndarray) else offset
            region = _region(np.float32, given, make, *where)
            piece = make(grad[:, h : h + 2, i : i + rows, j : j + columns])
            (part,) = bias.vjp(region, piece)
            assert_close(part, to_numpy(part), library)
            total += to_numpy(part)
    parameter = to_numpy(bias.arrays[0])
    for at in np.ndindex(parameter.shape):
        unit = np.zeros_like(parameter)
        unit[at] = 1.0
        expected = (grad * _values(CASES[name].build, unit, offset)).sum()
        np.testing.assert_allclose(total[at], expected, atol=2e-4)


@pytest.mark.parametrize("name", ["alibi", "buckets"])
def test_a_vector_jacobian_product_over_packed_sequences(library, make, name):
    """Positions start again within a tile; pairs of different sequences have no gradient."""
    bias = CASES[name].build(make)
    frame = _region(np.float32, 0, make).frame
    pack = importlib.import_module("attention_xp._scores.packing").pack
    rows, keys = ([0, 3, 7], [0, 4, 11])
    bounds = make(np.asarray(rows)), make(np.asarray(keys))
    packing = pack(frame.xp, 7, 11, bounds, (2, 0), None, None, same=False)
    region = type(_region(np.float32, 0, make)).whole(dataclasses.replace(frame, packing=packing))
    grad, total = np.zeros((2, 4, 7, 11)), np.zeros(bias.arrays[0].shape)
    for (i, stop), (j, end) in zip(itertools.pairwise(rows), itertools.pairwise(keys), strict=True):
        grad[:, :, i:stop, j:end] = normal(2, 4, stop - i, end - j)
        own = type(region)(_region(np.float32, 2, make).frame, (0, 0, 0, 0), (2, 4, stop - i, end - j))
        total += to_numpy(bias.vjp(own, make(grad[:, :, i:stop, j:end]))[0])
    assert_close(bias.vjp(region, make(grad))[0], total, library)


def test_a_vector_jacobian_product_of_few_axes(library, make):
    for shape in ((6, 8), (2, 6, 8)):
        q, k, v = inputs(shape)
        problem = importlib.import_module("attention_xp._engine.problem.problem").Problem.of(
            *map(make, (q, k, v)), None, 0.0, {}
        )
        region = importlib.import_module("attention_xp._scores.region").Region.whole(problem)
        grad = normal(*shape[:-2], 6, 6)
        (slopes,) = AlibiBias(make(np.asarray(0.5, np.float32))).vjp(region, make(grad))
        distance = abs(np.arange(6)[:, None] - np.arange(6))
        assert_close(slopes, -(grad * distance).sum(), library)
        (numbers,) = RelativePositionBias(make(np.zeros((4, 1))), max_distance=3).vjp(region, make(grad))
        sums = [(grad * (np.sign(distance) == (i % 2)) * sign).sum() for i, sign in _buckets_of_two()]
        assert_close(numbers, np.asarray(sums)[:, None], library)


def _buckets_of_two():
    """Of two buckets for a direction, one is for the query itself; nothing after it has a distance of 0."""
    i, j = np.arange(6)[:, None], np.arange(6)
    return [(0, j <= i), (1, j < i), (0, np.zeros((6, 6))), (1, j > i)]


def differences(cls, array):
    """Return the gradient of the sum of outputs times G by central differences on NumPy."""
    slopes = np.zeros_like(array)
    for at in np.ndindex(array.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = array.copy()
            moved[at] += step
            output, _ = scaled_dot_product_attention(Q, K, V, bias=cls(moved), impl="dense", **OPTIONS)
            ends.append(np.sum(output * G))
        slopes[at] = (ends[0] - ends[1]) / 2e-5
    return slopes


@pytest.mark.parametrize("cls", ARRAYS)
@pytest.mark.parametrize("tile", [None, (4, 5)])
def test_vjp_gives_the_gradients_of_the_arrays(library, make, cls, tile):
    _, vjp = attention_vjp(make(Q), make(K), make(V), bias=cls(make(ARRAYS[cls])), impl="tiled", tile=tile, **OPTIONS)
    (found,) = vjp(make(G)).bias
    assert_close(found, differences(cls, ARRAYS[cls]), library)


class Slope(Bias):
    """A bias with one floating array, for which a derivative may be missing or wrong."""

    def __init__(self, slope):
        self.slope = slope

    def values(self, region):
        return region.per_head(self.slope) * region.floating(region.q_idx - region.kv_idx)


class Doubled(Slope):
    def vjp(self, region, grad_scores):
        gradient = region.xp.sum(grad_scores * region.floating(region.q_idx - region.kv_idx))
        return gradient, gradient


class Flat(Slope):
    def vjp(self, region, grad_scores):
        return (region.xp.sum(grad_scores),)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("slope", [0.3, 2])
def test_a_bias_without_arrays_needs_no_vjp(library, make, impl, slope):
    places = slope * (np.arange(K.shape[-2]) - np.arange(Q.shape[-2])[:, None])
    arrays, options = (make(Q), make(K), make(V)), {"query_offset": 0, "impl": impl}
    found = attention_vjp(*arrays, bias=Slope(slope), **options)[1](make(G))
    expected = attention_vjp(*arrays, bias=make(-places.astype(Q.dtype)), **options)[1](make(G))
    assert found.bias == ()
    for name in ("query", "key", "value"):
        assert_close(getattr(found, name), to_numpy(getattr(expected, name)), library)


def test_a_bias_with_an_array_needs_a_vjp(make):
    with pytest.raises(ValueError, match=r"Slope has no gradients: expected a method vjp.* in its shape"):
        attention_vjp(make(Q), make(K), make(V), bias=Slope(make(np.ones(1))), query_offset=0)


@pytest.mark.backends("numpy", "strict", "torch", "cupy")  # JAX differentiates the values
@pytest.mark.parametrize("cls", [Doubled, Flat])
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_what_vjp_returns_must_fit_the_arrays(make, cls, impl):
    _, vjp = attention_vjp(make(Q), make(K), make(V), bias=cls(make(np.ones(4))), query_offset=0, impl=impl)
    with pytest.raises(ValueError, match=rf"{cls.__name__}.vjp must return a gradient for each"):
        vjp(make(G))
