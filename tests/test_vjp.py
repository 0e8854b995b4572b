"""`attention_vjp`: the gradients of the formula, on every backend and kernel, for all options."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings

from attention_xp import attention_vjp, flash_attention, scaled_dot_product_attention
from attention_xp.masks import CausalMask, Mask, SegmentMask, WindowMask
from tests import reference
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests._slopes import FLOATING, check_gradients, named
from tests.conftest import with_tiles
from tests.score_mods import bent, distance_penalty, with_derivative
from tests.strategies import cases
from tests.test_attention_property import examples, survivors

Q, K, V = inputs((2, 4, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3))
G = normal(2, 4, 5, 3, seed=3)

SINGLE = {
    "boolean mask": {"mask": normal(2, 1, 5, 7) > -0.5},
    "float mask": {"mask": np.where(normal(5, 7) > 0, normal(5, 7), -np.inf)},
    "bias of heads": {"bias": normal(4, 5, 7)},
    "bias of everything": {"bias": normal(2, 4, 5, 7)},
    "bias of keys": {"bias": normal(2, 1, 1, 7)},
    "bias of rows": {"bias": normal(4, 5, 1)},
    "bias of a number": {"bias": np.asarray(0.5)},
    "causal": {"is_causal": True, "query_offset": np.asarray([2, 0])},
    "empty rows": {"is_causal": True, "query_offset": -2},
    "window": {"window": (2, 1), "query_offset": 1},
    "query lengths": {"query_lengths": np.asarray([3, 5])},
    "key lengths": {"key_lengths": np.asarray([4, 0])},
    "key length": {"key_lengths": 4},
    "scale": {"scale": -0.7},
    "scale of zero": {"scale": 0.0},
    "soft cap": {"softcap": 0.8},
    "score_mod": {"score_mod": bent},
    "sinks": {"sinks": normal(4)},
    "dropout": {"dropout_rate": 0.4, "rng": 5},
}
PAIRS = {
    f"{one}, {other}": SINGLE[one] | SINGLE[other]
    for one, other in itertools.combinations(SINGLE, 2)
    if not SINGLE[one].keys() & SINGLE[other].keys()
}
OPTIONS = {"none": {}} | SINGLE
TOLERANCE = {"float64": 1e-8, "float32": 2e-4}


def made(library, options, dtype):
    """The options with arrays and functions of the library; floats in one dtype."""

    def convert(x):
        return library.array(x, dtype if x.dtype.kind == "f" else None) if isinstance(x, np.ndarray) else x

    options = {name: convert(x) for name, x in options.items()}
    if options.get("score_mod"):
        options["score_mod"] = with_derivative(library.namespace(), options["score_mod"])
    return options


def gradients_of(library, arrays, options, gradient=G, *, dtype=None, **how):
    """The output of `attention_vjp` and its gradients by name, in NumPy."""
    dtype = dtype or library.dtypes()[-1]
    given = made(library, arrays | options, dtype)
    output, vjp = attention_vjp(**given, **how)
    assert str(output.dtype).rpartition(".")[2].removesuffix("'>") == dtype
    return to_numpy(output), named(vjp(library.array(gradient, dtype)), to_numpy)


def check(library, options, **how):
    """Compare output and gradients with the formula."""
    arrays = {"query": Q, "key": K, "value": V} | {n: x for n, x in options.items() if n in FLOATING}
    others = {n: x for n, x in options.items() if n not in FLOATING}
    output, gradients = gradients_of(library, arrays, others, **how)
    rest = dict(others)
    if rest.get("score_mod"):
        rest["score_mod"] = rest["score_mod"](np)
    if rest.pop("rng", None) is not None:
        drawing = {n: others[n] for n in ("dropout_rate", "rng", "query_offset") if n in others}
        rest["keep"] = survivors((Q, K, V), drawing | {"query_offset": others.get("query_offset")})
    np.testing.assert_allclose(output, reference.attention(**arrays, **rest).output, rtol=1e-4, atol=1e-5)
    check_gradients(gradients, arrays, rest, G, rtol=TOLERANCE[library.dtypes()[-1]])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_option(library, impl, options):
    check(library, options, impl=impl, tile=(2, 3))


@pytest.mark.parametrize("options", PAIRS.values(), ids=PAIRS)
@pytest.mark.backends("numpy", "strict", "torch")
def test_pairs_of_options(library, options):
    check(library, options, impl="tiled", tile=(2, 3))


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (3, 2), (64, 64), None], ids=str)
def test_the_size_of_tiles_does_not_matter(library, tile):
    options = SINGLE["bias of heads"] | SINGLE["causal"] | SINGLE["dropout"] | SINGLE["sinks"]
    check(library, options, impl="tiled", tile=tile)


LARGE = {
    "full": {},
    "causal": {"is_causal": True, "query_offset": 13},
    "window": {"window": (70, 5), "query_offset": 0},
    "rules": {"mask": (CausalMask() | WindowMask(0, 20)) & SegmentMask(np.arange(800) // 300), "query_offset": 0},
    "boolean mask": {"mask": normal(700, 713) > -0.5},
    "bias of all heads": {"bias": normal(700, 713), "is_causal": True, "query_offset": 0},
    "float mask of keys": {"mask": np.where(normal(2, 1, 1, 713) > 0, normal(2, 1, 1, 713), -np.inf)},
    "lengths": {"query_lengths": np.asarray([70, 700]), "key_lengths": np.asarray([713, 300]), "softcap": 2.0},
    "dropout": {"dropout_rate": 0.2, "rng": 3, "is_causal": True, "query_offset": 13},
    "large scores": {"scale": 60.0},
    "large scores, causal": {"scale": 60.0, "is_causal": True, "query_offset": 13},
}


@pytest.mark.parametrize("options", LARGE.values(), ids=LARGE)
def test_many_tiles_agree_with_one(library, options):
    """In float32, with the tiles that are chosen, against the dense kernel in the widest dtype."""
    arrays = dict(zip(("query", "key", "value"), inputs((2, 4, 700, 8), (1, 2, 713, 8), (2, 2, 713, 6)), strict=True))
    gradient = normal(2, 4, 700, 6, seed=3)
    _, actual = gradients_of(library, arrays, options, gradient, dtype="float32", impl="tiled")
    _, expected = gradients_of(library, arrays, options, gradient, impl="dense")
    for name, wanted in expected.items():
        assert (actual[name] is None) == (wanted is None)
        if wanted is not None:
            size = np.abs(wanted).max()
            atol = (1e-5 if "scale" not in options else 1e-3) * size
            np.testing.assert_allclose(actual[name], wanted, rtol=0.0, atol=atol, err_msg=name)


def test_options_combine(library, impl):
    dtype = library.dtypes()[-1]

    @settings(max_examples=examples(library) // 2)
    @given(cases((dtype,)))
    def combine(case):
        arrays, options = case.rounded(library)
        drawn = {"query": arrays[0], "key": arrays[1], "value": arrays[2]}
        drawn |= {n: options.pop(n) for n in ("mask", "bias", "sinks")}
        expected = dict(options)
        if expected.pop("rng", None) is not None:
            expected["keep"] = survivors(arrays, options)
        keywords = case.keywords(library)
        given = keywords | made(library, drawn, dtype)
        if isinstance(keywords["mask"], Mask):
            given["mask"] = keywords["mask"]
        if given["score_mod"]:
            given["score_mod"] = with_derivative(library.namespace(), distance_penalty)
        output, vjp = attention_vjp(**given, impl=impl)
        gradient = normal(*output.shape)
        gradients = named(vjp(library.array(gradient, dtype)), to_numpy)
        check_gradients(gradients, drawn, expected, gradient, rtol=10.0 * TOLERANCE[dtype])

    combine()


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)], ids=["no queries", "no keys", "nothing"])
def test_empty_lengths(library, impl, sizes):
    Sq, Sk = sizes
    arrays = {"query": normal(2, 4, Sq, 3), "key": normal(2, 2, Sk, 3), "value": normal(2, 2, Sk, 2)}
    arrays |= {"bias": normal(4, Sq, Sk), "sinks": normal(4)}
    _, gradients = gradients_of(library, arrays, {}, normal(2, 4, Sq, 2), impl=impl)
    for name, array in arrays.items():
        np.testing.assert_array_equal(gradients[name], np.zeros(array.shape))
    assert gradients["mask"] is None


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 1, 3, 5, 4)], ids=str)
def test_any_number_of_axes(library, impl, shape):
    query, key, value = inputs(shape, (1,) * (len(shape) > 2) + shape[1:] if len(shape) > 2 else shape)
    gradient = normal(*shape, seed=3)
    arrays = {"query": query, "key": key, "value": value}
    _, gradients = gradients_of(library, arrays, {"is_causal": True}, gradient, impl=impl, tile=(2, 2))
    check_gradients(gradients, arrays, {"is_causal": True}, gradient, rtol=TOLERANCE[library.dtypes()[-1]])


EXCLUDED = {
    "boolean mask": {"mask": np.arange(7) < 5},
    "float mask": {"mask": np.where(np.arange(7) < 5, 0.5, -np.inf)},
    "key lengths": {"key_lengths": np.asarray([5, 5])},
    "causal": {"is_causal": True, "query_offset": 0},
    "soft cap": {"key_lengths": np.asarray([5, 5]), "softcap": 2.0},
    "score_mod": {"key_lengths": np.asarray([5, 5]), "score_mod": bent},
}


@pytest.mark.with_nan
@with_tiles((2, 3), (8, 8))
@pytest.mark.parametrize("options", EXCLUDED.values(), ids=EXCLUDED)
def test_what_is_excluded_never_reaches_a_gradient(library, impl, options, tile):
    arrays = {"query": Q, "key": K, "value": V}
    _, expected = gradients_of(library, arrays, options, impl=impl, tile=tile)
    for where, bad in ((("key",), np.nan), (("value",), np.nan), (("key", "value"), np.inf)):
        planted = {name: x.copy() for name, x in arrays.items()}
        for name in where:
            planted[name][..., 5:, :] = bad
        output, actual = gradients_of(library, planted, options, impl=impl, tile=tile)
        assert np.isfinite(output).all()
        for name in arrays:
            np.testing.assert_allclose(
                actual[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=f"{bad} in {where}: {name}"
            )


@pytest.mark.with_nan
def test_a_nan_that_is_attended_stays_with_its_queries(library, impl):
    arrays = {"query": Q[..., :5, :], "key": K[..., :5, :].copy(), "value": V[..., :5, :]}
    arrays["key"][..., 3, :] = np.nan
    _, gradients = gradients_of(library, arrays, {"is_causal": True}, impl=impl, tile=(2, 2))
    assert np.isfinite(gradients["query"][..., :3, :]).all()
    assert np.isnan(gradients["query"][..., 3:, :]).all()
    _, clean = gradients_of(library, arrays | {"key": K[..., :5, :]}, {"is_causal": True}, impl=impl, tile=(2, 2))
    np.testing.assert_allclose(gradients["query"][..., :3, :], clean["query"][..., :3, :], rtol=1e-4, atol=1e-5)


EMPTY = {
    "boolean mask": {"mask": np.zeros((5, 7), bool)},
    "float mask": {"mask": np.full((5, 7), -np.inf)},
    "bias": {"bias": np.full((5, 7), -np.inf)},
    "key length": {"key_lengths": 0},
    "query length": {"query_lengths": 0},
    "causal": {"is_causal": True, "query_offset": -5},
}


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("options", EMPTY.values(), ids=EMPTY)
def test_rows_with_nothing_to_attend_have_zero_gradients(library, impl, options, with_sinks):
    arrays = {"query": Q, "key": K, "value": V} | ({"sinks": normal(4)} if with_sinks else {})
    output, gradients = gradients_of(library, arrays, options, impl=impl, tile=(2, 3))
    assert not output.any()
    for gradient in gradients.values():
        if gradient is not None:
            np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_computed_in_32(library, impl, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype}")
    rounded = [to_numpy(library.array(x, dtype)) for x in (Q, K, V, normal(4, 5, 7), G)]
    arrays = dict(zip(("query", "key", "value", "bias"), rounded, strict=False))
    _, actual = gradients_of(library, arrays, {}, rounded[-1], dtype=dtype, impl=impl)
    _, expected = gradients_of(library, arrays, {}, rounded[-1], dtype="float32", impl=impl)
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for name in arrays:
        np.testing.assert_allclose(actual[name], expected[name], rtol=step, atol=1e-6, err_msg=name)


def test_the_output_is_that_of_attention(library, make, impl):
    q, k, v = make(Q), make(K), make(V)
    output, _ = attention_vjp(q, k, v, dropout_rate=0.5, rng=1, impl=impl)
    assert_close(output, to_numpy(flash_attention(q, k, v, None, 0.5, rng=1, impl=impl)), library)


def test_dropout_weights_the_gradient_of_the_value(library, make, impl):
    q, k, v = (make(x) for x in inputs((2, 5, 4)))
    weights = scaled_dot_product_attention(q, k, v, None, 0.5, rng=1, impl=impl)[1]
    _, vjp = attention_vjp(q, k, v, dropout_rate=0.5, rng=1, impl=impl)
    gradient = vjp(make(np.ones((2, 5, 4)))).value
    np.testing.assert_allclose(to_numpy(gradient)[..., 0], to_numpy(weights).sum(axis=-2), rtol=1e-5, atol=1e-6)


def test_gradients_have_the_library_of_their_arguments(library, make):
    arrays = {"query": make(Q), "key": make(K), "value": make(V), "bias": make(normal(1, 1, 4, 5, 7))}
    _, vjp = attention_vjp(**arrays)
    gradients = vjp(make(G))
    for name, array in arrays.items():
        assert_close(getattr(gradients, name), to_numpy(getattr(gradients, name)).reshape(array.shape), library)
    assert gradients.mask is None
    assert gradients.sinks is None


def test_wrong_gradients_are_refused(library, make):
    _, vjp = attention_vjp(make(Q), make(K), make(V))
    with pytest.raises(ValueError, match=r"grad_output must have the shape of the output: .*\(2, 4, 5, 3\), got"):
        vjp(make(G[..., :2]))
    with pytest.raises(TypeError, match="grad_output must be"):
        vjp(G.tolist())
    with pytest.raises(TypeError, match="grad_output must be a floating array"):
        vjp(make(np.ones(G.shape, np.int32)))


@pytest.mark.backends("numpy", "strict", "cupy")
def test_a_score_mod_without_a_derivative_is_refused(library, make):
    with pytest.raises(ValueError, match=r"cannot differentiate score_mod: expected a pair \(score_mod, derivative\)"):
        attention_vjp(make(Q), make(K), make(V), score_mod=bent(library.namespace()))


@pytest.mark.backends("torch", "jax")
def test_a_score_mod_needs_no_derivative_where_the_library_has_one(library, make, impl):
    arrays = make(Q), make(K), make(V)
    alone, pair = (
        attention_vjp(*arrays, score_mod=f, impl=impl)[1](make(G))
        for f in (bent(library.namespace()), with_derivative(library.namespace(), bent))
    )
    for one, other in zip(alone[:3], pair[:3], strict=True):
        assert_close(one, to_numpy(other), library)


def test_no_guest_takes_part(library):
    """Their kernels keep the log-sum-exp to themselves; the error tells which do not."""
    with pytest.raises(
        ValueError, match=r"impl='fused' cannot compute this call: .*; impl='dense' and impl='tiled' can"
    ):
        attention_vjp(*map(library.array, inputs((2, 4, 8))), impl="fused")


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_rows_of_the_smallest_number_leave_the_gradients_of_others_alone(library, impl):
    low, gradient = np.zeros((5, 7), np.float32), G.copy()
    low[:2] = np.finfo(np.float32).min  # as in left padding: nothing is asked of what comes out there
    gradient[..., :2, :] = 0.0
    query, key, value, mask, gradient = (library.array(a, "float32") for a in (Q, K, V, low, gradient))
    _, vjp = attention_vjp(query, key, value, mask, impl=impl)
    found = vjp(gradient)
    _, vjp = attention_vjp(*(library.array(a, "float64") for a in (Q[..., 2:, :], K, V)), impl=impl)
    of_others = vjp(library.array(G[..., 2:, :], "float64"))
    assert not to_numpy(found.query)[..., :2, :].any()
    for a, b in zip((found.query[..., 2:, :], *found[1:3]), of_others[:3], strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=2e-4, atol=2e-6)
