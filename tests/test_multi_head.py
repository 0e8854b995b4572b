"""Multi-head attention: projections, heads, grouped heads, and their initial values."""

import numpy as np
import pytest
from array_api_compat import array_namespace, device as device_of

from attention_xp import (
    MultiHeadParams,
    init_multi_head_params,
    multi_head_attention,
    multi_head_self_attention,
)
from tests import reference
from tests._assertions import assert_close, assert_equal, dtype_name
from tests._backends import to_numpy
from tests._generators import KINDS, source
from tests._inputs import normal

WIDTHS = {"w_q": (8, 8), "w_k": (8, 4), "w_v": (8, 4), "w_o": (8, 8)}
BIASES = {"b_q": (8,), "b_k": (4,), "b_v": (4,), "b_o": (8,)}


def split(x, heads):
    """``(B, S, H * dh)`` to ``(B, H, S, dh)``."""
    return np.stack(np.split(x, heads, axis=-1), axis=-3)


def join(x):
    """``(B, H, S, dh)`` to ``(B, S, H * dh)``."""
    return np.concatenate([x[..., h, :, :] for h in range(x.shape[-3])], axis=-1)


def formula(q, k, v, heads, params=None, kv_heads=None, **options):
    """Multi-head attention head by head in float64."""
    p = params or {}
    kv_heads = kv_heads or heads
    project = (lambda x, n: x @ p[f"w_{n}"] + p.get(f"b_{n}", 0.0)) if params else (lambda x, n: x)
    result = reference.attention(
        split(project(q, "q"), heads), split(project(k, "k"), kv_heads), split(project(v, "v"), kv_heads), **options
    )
    return project(join(result.output), "o"), result.weights


def parameters(names):
    """NumPy parameters of the given names and shapes."""
    return {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(names.items())}


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_without_params_heads_are_split_attended_and_joined(library, make, heads):
    q, k, v = normal(2, 5, 8), normal(2, 7, 8, seed=1), normal(2, 7, 8, seed=2)
    output, weights = multi_head_attention(make(q), make(k), make(v), heads, 8)
    expected, expected_weights = formula(q, k, v, heads)
    assert_close(output, expected, library)
    assert_close(weights, expected_weights, library)


@pytest.mark.parametrize("biases", [{}, BIASES, {"b_v": (4,)}], ids=["no bias", "biases", "one bias"])
def test_projections_with_grouped_heads(library, make, biases):
    params = parameters(WIDTHS | biases)
    q, k, v = normal(2, 5, 8), normal(2, 7, 8, seed=1), normal(2, 7, 8, seed=2)
    made = MultiHeadParams(**{name: make(x) for name, x in params.items()})
    output, weights = multi_head_attention(make(q), make(k), make(v), 4, 8, params=made, num_kv_heads=2)
    expected, expected_weights = formula(q, k, v, 4, params, 2)
    assert_close(output, expected, library, atol=1e-4)
    assert_close(weights, expected_weights, library)


def test_params_tell_the_widths_of_heads_and_output(library, make):
    """Six query heads of 4 for a query of 10, keys and values of other widths, values of 5, an output of 7."""
    widths = {"w_q": (10, 24), "w_k": (6, 12), "w_v": (9, 15), "w_o": (30, 7)}
    biases = {"b_q": (24,), "b_k": (12,), "b_v": (15,), "b_o": (7,)}
    params = {name: 0.3 * x for name, x in parameters(widths | biases).items()}
    q, k, v = normal(2, 5, 10), normal(2, 7, 6, seed=1), normal(2, 7, 9, seed=2)
    made = MultiHeadParams(**{name: make(x) for name, x in params.items()})
    for lengths in (None, 4):
        output, weights = multi_head_attention(
            make(q), make(k), make(v), 6, 10, params=made, num_kv_heads=3, key_lengths=lengths
        )
        expected, expected_weights = formula(q, k, v, 6, params, 3, key_lengths=7 if lengths is None else lengths)
        assert expected.shape == (2, 5, 7)
        assert_close(output, expected, library, atol=1e-4)
        assert_close(weights, expected_weights, library)


def test_grouped_heads_without_params_have_narrow_keys(library, make):
    q, k, v = normal(2, 5, 8), normal(2, 7, 4, seed=1), normal(2, 7, 4, seed=2)
    output, weights = multi_head_attention(make(q), make(k), make(v), 4, 8, num_kv_heads=2)
    expected, expected_weights = formula(q, k, v, 4, kv_heads=2)
    assert_close(output, expected, library)
    assert_close(weights, expected_weights, library)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"mask": np.tri(5, dtype=bool)},
        {"mask": (np.arange(5) < np.asarray([[3], [5]])).reshape(2, 1, 1, 5)},
        {"bias": normal(4, 5, 5), "softcap": 2.0, "window": 1},
        {"key_lengths": np.asarray([3, 0]), "query_lengths": np.asarray([5, 2]), "sinks": normal(4)},
        {"key_lengths": 2},
        {"key_lengths": 2, "mask": np.tri(5, dtype=bool), "bias": normal(4, 5, 5)},
        {"key_lengths": np.asarray([3, 1]), "bias": normal(4, 5, 5)},
    ],
)
def test_options_are_passed_on(library, make, options):
    x = normal(2, 5, 8)
    made = {name: make(o) if isinstance(o, np.ndarray) else o for name, o in options.items()}
    output, weights = multi_head_self_attention(make(x), 4, 8, **made)
    expected, expected_weights = formula(x, x, x, 4, **options)
    assert_close(output, expected, library)
    assert_close(weights, expected_weights, library)


def test_self_attention_is_attention_of_one_input(library, make):
    x, params = make(normal(2, 5, 8)), parameters(WIDTHS)
    params = MultiHeadParams(**{name: make(p) for name, p in params.items()})
    for one, other in zip(
        multi_head_self_attention(x, 4, 8, None, 0.5, params=params, num_kv_heads=2, rng=1),
        multi_head_attention(x, x, x, 4, 8, None, 0.5, params=params, num_kv_heads=2, rng=1),
        strict=True,
    ):
        assert_equal(one, to_numpy(other), library)


def test_weights_are_optional(library, make):
    x = make(normal(2, 5, 8))
    output, weights = multi_head_attention(x, x, x, 4, 8, return_weights=False)
    assert weights is None
    assert_close(output, to_numpy(multi_head_attention(x, x, x, 4, 8)[0]), library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(library, make, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    x = make(normal(2, 5, 8), dtype)
    params = MultiHeadParams(*(make(0.3 * normal(8, 8, seed=i), dtype) for i in range(4)))
    output, weights = multi_head_self_attention(x, 2, 8, params=params)
    expected, _ = formula(
        *([to_numpy(x)] * 3), 2, {n: to_numpy(p) for n, p in params._asdict().items() if p is not None}
    )
    assert_close(output, expected, library, dtype=dtype, rtol=3e-2 if dtype == "bfloat16" else 4e-3)
    assert dtype_name(weights.dtype) == dtype


def test_params_are_a_named_tuple_with_optional_biases():
    assert issubclass(MultiHeadParams, tuple)
    assert MultiHeadParams._fields == ("w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o")
    assert MultiHeadParams(1, 2, 3, 4)[4:] == (None, None, None, None)


@pytest.mark.parametrize("kv_heads", [None, 1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_initial_params_fit(library, make, xp, device, kv_heads, bias):
    params = init_multi_head_params(
        8, 4, num_kv_heads=kv_heads, bias=bias, rng=0, xp=xp, dtype="float32", device=device
    )
    width = 2 * (kv_heads or 4)
    assert [tuple(w.shape) for w in params[:4]] == [(8, 8), (8, width), (8, width), (8, 8)]
    given = [p for p in params if p is not None]
    assert len(given) == (8 if bias else 4)
    for p in given:
        assert array_namespace(p) == xp
        assert dtype_name(p.dtype) == "float32"
        assert device_of(p) == device
    for b, n in zip(params[4:] if bias else (), (8, width, width, 8), strict=False):
        assert_equal(b, np.zeros(n), library, dtype="float32")
    output, _ = multi_head_self_attention(make(normal(2, 5, 8)), 4, 8, params=params, num_kv_heads=kv_heads)
    assert tuple(output.shape) == (2, 5, 8)


def test_initial_weights_are_glorot_uniform(xp, device):
    params = init_multi_head_params(64, 8, num_kv_heads=2, rng=0, xp=xp, dtype="float32", device=device)
    for w in params[:4]:
        limit = (6.0 / sum(w.shape)) ** 0.5
        u = to_numpy(w).astype(np.float64) / limit
        assert np.abs(u).max() <= 1.0
        assert np.abs(u).max() > 0.98
        assert abs(u.mean()) < 5.0 * (1.0 / 3.0 / u.size) ** 0.5
        assert u.var() == pytest.approx(1.0 / 3.0, rel=0.1)
    assert not np.array_equal(to_numpy(params.w_k), to_numpy(params.w_v))


def test_a_seed_gives_the_same_params_on_every_backend(library, xp, device):
    expected = init_multi_head_params(8, 4, rng=6, dtype="float32")
    actual = init_multi_head_params(8, 4, rng=6, xp=xp, dtype="float32", device=device)
    for one, other in zip(actual[:4], expected[:4], strict=True):
        assert_close(one, other, library)


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_of_randomness(library, xp, device, kind):
    if source(library, kind) is None:
        pytest.skip(f"{library.value} has no {kind}")
    first, again = (
        init_multi_head_params(8, 4, rng=source(library, kind), xp=xp, dtype="float32", device=device) for _ in range(2)
    )
    assert_close(first.w_q, to_numpy(again.w_q), library)


def test_numpy_in_its_default_dtype_is_the_default():
    params = init_multi_head_params(8, 4)
    assert type(params.w_q) is np.ndarray
    assert params.w_q.dtype == np.float64


@pytest.mark.backends("jax")
def test_params_are_a_jax_pytree():
    jax = pytest.importorskip("jax")
    params = init_multi_head_params(8, 4, rng=0, xp=jax.numpy)
    assert len(jax.tree.leaves(params)) == 4
    assert isinstance(jax.tree.map(lambda w: 2 * w, params), MultiHeadParams)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((3, 3), bool)}, "mask"),
        ({"dropout_rate": 1.5}, "dropout_rate"),
        ({"scale": "large"}, "scale"),
        ({"key_lengths": 3.5}, "key_lengths"),
        ({"impl": "fused", "softcap": 2.0, "return_weights": False}, "fused"),
        ({"return_weights": 1}, "return_weights"),
        ({"rng": "seed", "dropout_rate": 0.1}, "rng"),
        ({"windows": 3}, "windows"),
    ],
)
def test_a_bad_call_is_refused_before_anything_is_projected(library, make, monkeypatch, options, message):
    if library.like("cupy") and "impl" in options:
        pytest.skip("kernels judge the layout of CuPy's arrays as well, which the projections make")

    def project(*_):
        raise AssertionError("projected")

    monkeypatch.setattr("attention_xp._multi_head.project", project)
    params = MultiHeadParams(**{name: make(a) for name, a in parameters(WIDTHS).items()})
    x, options = make(normal(2, 5, 8)), {k: make(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    with pytest.raises((TypeError, ValueError), match=message):
        multi_head_attention(x, x, x, 2, 8, params=params, num_kv_heads=1, **options)


@pytest.mark.backends("torch")
def test_a_call_with_params_draws_from_the_global_generator_once(make):
    torch = pytest.importorskip("torch")
    x, eye = make(normal(2, 5, 8)), make(np.eye(8))
    drawn = []
    for params in (MultiHeadParams(eye, eye, eye, eye), None):
        torch.manual_seed(0)
        multi_head_attention(x, x, x, 2, 8, None, 0.5, params=params)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1]


@pytest.mark.backends("numpy", "torch")
def test_a_call_with_params_draws_as_one_without(library, make):
    x, eye = make(normal(2, 5, 8)), make(np.eye(8))
    params = MultiHeadParams(eye, eye, eye, eye)
    results = [
        multi_head_attention(x, x, x, 2, 8, None, 0.5, params=given, rng=source(library, "generator"))
        for given in (params, None)
    ]
    for projected, plain in zip(*results, strict=True):
        assert_close(projected, plain, library)
