"""Biases as rules: in attention the same as the array they stand for."""

import importlib
import tracemalloc

import numpy as np
import pytest

from attention_xp import (
    alibi_slopes,
    attention_vjp,
    explain,
    flash_attention,
    multi_head_attention,
    scaled_dot_product_attention,
)
from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from attention_xp.masks import CausalMask, PrefixMask
from tests import reference
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests._transforms import compiled_and_mapped
from tests.biases._cases import CASES, SLOPES, TABLE

QKV = inputs((2, 4, 7, 8), (2, 2, 11, 8), (2, 2, 11, 5))
names = pytest.mark.parametrize("name", CASES)


def table(name, heads, rows, columns=range(11), batch=2):
    return CASES[name].table(batch, heads, rows, columns)


def test_biases_are_equal_as_masks_are():
    table = np.ones((8, 2))
    one, same = (RelativePositionBias(table, max_distance=9) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != RelativePositionBias(table, max_distance=10)
    assert one != RelativePositionBias(table.copy(), max_distance=9)


@names
@pytest.mark.parametrize(("kind", "offset"), [("own", 0), ("numpy", 4), ("own", -3)])
def test_same_as_the_array(library, make, impl, name, kind, offset):
    bias = CASES[name].build(make if kind == "own" else np.asarray)
    output, lse = flash_attention(
        *map(make, QKV), bias=bias, query_offset=offset, impl=impl, tile=(3, 4), return_lse=True
    )
    expected = reference.attention(*QKV, bias=table(name, 4, range(offset, offset + 7)))
    assert_close(output, expected.output, library)
    assert_close(lse, expected.lse, library)


@names
def test_an_offset_for_each_batch_item(library, make, impl, name):
    output, weights = scaled_dot_product_attention(
        *map(make, QKV), bias=CASES[name].build(make), query_offset=make(np.asarray([1, 4])), impl=impl, tile=(3, 4)
    )
    rows = [table(name, 4, range(o, o + 7))[[b]] for b, o in enumerate((1, 4))]
    expected = reference.attention(*QKV, bias=np.concatenate(rows))
    assert_close(output, expected.output, library)
    assert_close(weights, expected.weights, library)


@names
def test_with_other_options(library, make, impl, name):
    q, k, v = QKV
    options = {"softcap": 2.0, "sinks": normal(4), "key_lengths": np.asarray([9, 5]), "query_offset": 3}
    made = {n: make(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    mask = CausalMask() | PrefixMask(2)
    output = flash_attention(*map(make, QKV), mask, bias=CASES[name].build(make), impl=impl, tile=(4, 3), **made)
    i, j = np.arange(3, 10)[:, None], np.arange(11)
    expected = reference.attention(q, k, v, (j <= i) | (j < 2), bias=table(name, 4, range(3, 10)), **options)
    assert_close(output, expected.output, library)


@pytest.mark.parametrize(
    "name", [n for n, case in CASES.items() if case.heads == case.items == 1 and n != "with exclusions"]
)
@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (2, 3, 6, 8), (3, 2, 4, 6, 8)])
def test_any_number_of_axes(library, make, impl, shape, name):
    q, k, v = inputs(shape)
    output = flash_attention(*map(make, (q, k, v)), bias=CASES[name].build(make), impl=impl, tile=(4, 3))
    expected = reference.attention(q, k, v, bias=table(name, 1, range(6), range(6), batch=1)[0, 0])
    assert_close(output, expected.output, library)


@pytest.mark.parametrize(
    ("shape", "lead"), [((2, 6, 8), (2, 1)), ((3, 2, 4, 6, 8), (3, 1, 4)), ((3, 2, 4, 6, 8), (2, 1))]
)
def test_slopes_of_batch_items_of_any_number_of_axes(library, make, impl, shape, lead):
    q, k, v = inputs(shape)
    slopes = np.abs(normal(*lead)).astype("float32")
    output = flash_attention(*map(make, (q, k, v)), bias=AlibiBias(make(slopes)), impl=impl, tile=(4, 3))
    bias = -slopes[..., None, None] * abs(np.arange(6)[:, None] - np.arange(6))
    expected = reference.attention(q, k, v, bias=bias[..., 0, :, :] if len(shape) == 3 else bias)
    assert_close(output, expected.output, library)


@names
@pytest.mark.parametrize(("rows", "keys"), [(0, 5), (3, 0), (0, 0), (1, 1)])
def test_no_rows_or_no_keys(library, make, impl, name, rows, keys):
    q, k, v = inputs((2, 4, rows, 8), (2, 4, keys, 8))
    output = flash_attention(*map(make, (q, k, v)), bias=CASES[name].build(make), impl=impl)
    expected = reference.attention(q, k, v, bias=table(name, 4, range(rows), range(keys)))
    assert_close(output, expected.output, library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_parameters_of_another_dtype(library, make, impl, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    arrays = [make(x, dtype) for x in QKV]
    output = flash_attention(*arrays, bias=AlibiBias(make(SLOPES)), impl=impl)
    expected = reference.attention(*map(to_numpy, arrays), bias=table("alibi", 4, range(7)))
    assert_close(output, expected.output, library, dtype=dtype)


def test_it_reaches_every_head_of_a_projection(library, make):
    x = normal(2, 6, 8)
    output, _ = multi_head_attention(*[make(x)] * 3, 4, 8, bias=AlibiBias(make(SLOPES)))
    array = make(table("alibi", 4, range(6), range(6), batch=1))
    assert_close(output, to_numpy(multi_head_attention(*[make(x)] * 3, 4, 8, bias=array)[0]), library)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_alibi_as_in_bloom(library, make, heads):
    """There the distance counts from the first key, which the softmax does not see under a causal mask."""
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).numpy().reshape(1, heads, 1, 9)
    qkv = inputs((1, heads, 9, 8))
    ours = flash_attention(*map(make, qkv), bias=AlibiBias(make(alibi_slopes(heads))), is_causal=True)
    assert_close(ours, reference.attention(*qkv, bias=theirs, is_causal=True).output, library)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "max_distance"), [(32, 128), (32, 20), (64, 1000), (32, 10**6), (12, 7), (4, 100)])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_buckets_as_in_t5(library, make, count, max_distance, bidirectional):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    if not bidirectional and max_distance <= count // 2:
        pytest.skip("every distance has a bucket of its own")
    distances = torch.arange(-1100, 1101)
    theirs = t5.T5Attention._relative_position_bucket(distances, bidirectional, count, max_distance).numpy()
    bias = RelativePositionBias(
        make(np.arange(count, dtype=np.float32)), bidirectional=bidirectional, max_distance=max_distance
    )
    # With a key of 0 and many queries, the log-sum-exp is the bias.
    q, k = (make(np.zeros((n, 1))) for n in (2201, 1))
    _, lse = flash_attention(q, k, k, bias=bias, query_offset=-1100, return_lse=True)
    assert_close(lse, theirs[::-1], library)


@pytest.mark.parametrize("is_decoder", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_layer_of_t5(library, make, is_decoder):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    settings = t5.T5Config(d_model=16, d_kv=4, num_heads=4, is_decoder=is_decoder, dropout_rate=0.0)
    torch.manual_seed(0)
    layer = t5.T5Attention(settings, has_relative_attention_bias=True, layer_idx=0).eval()
    weight = layer.relative_attention_bias.weight.detach().numpy()
    with torch.no_grad():
        theirs = layer.compute_bias(40, 40).numpy()
    bias = RelativePositionBias(make(weight), bidirectional=not is_decoder)
    q, k, v = inputs((1, 4, 40, 4))
    output = flash_attention(*map(make, (q, k, v)), bias=bias, scale=1.0)
    assert_close(output, reference.attention(q, k, v, bias=theirs, scale=1.0).output, library)
    step = flash_attention(make(q[:, :, 30:31]), make(k), make(v), bias=bias, scale=1.0, query_offset=30)
    assert_close(step, to_numpy(output)[:, :, 30:31], library)


@pytest.mark.backends("torch", "jax")
@pytest.mark.parametrize("name", ["alibi", "buckets", "of a user"])
def test_compiled_and_mapped(library, make, impl, name):
    build = CASES[name].build

    def attend(p, offset, *qkv):
        return flash_attention(*qkv, bias=build(lambda _: p), query_offset=offset, impl=impl, tile=(3, 4))

    arrays = [CASES[name].build(make).arrays[0], make(np.asarray([2, 0])), *map(make, QKV)]
    expected = to_numpy(attend(*arrays))
    compiled, mapped = compiled_and_mapped(library, attend)
    assert_close(compiled(*arrays), expected, library)
    xp = library.namespace()
    stacked = [xp.stack([a, a + a]) for a in arrays]
    expected = np.stack([to_numpy(attend(*(a[i, ...] for a in stacked))) for i in range(2)])
    assert_close(mapped(*stacked), expected, library)


@pytest.mark.backends("torch", "jax")
@pytest.mark.parametrize("kind", ["own", "numpy"])
def test_a_bias_made_outside_of_the_compiled_function(library, make, impl, kind):
    bias, made = AlibiBias(make(SLOPES) if kind == "own" else SLOPES), [make(x) for x in QKV]

    def call(*qkv):
        return flash_attention(*qkv, bias=bias, impl=impl)

    if library.like("jax"):
        compiled = importlib.import_module("jax").jit(call)
    else:
        torch = importlib.import_module("torch")
        torch.compiler.reset()
        compiled = torch.compile(call, fullgraph=True, backend="eager")
    assert_close(compiled(*made), to_numpy(call(*made)), library)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("bias", [AlibiBias(SLOPES[:1]), RelativePositionBias(TABLE[:, :1])], ids=repr)
def test_tiles_never_hold_all_pairs(bias):
    size = 16384
    q, k, v = (x.astype(np.float32) for x in inputs((1, 1, size, 8)))
    tracemalloc.start()
    flash_attention(q, k, v, bias=bias, is_causal=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size * size * 4 / 16


@pytest.mark.backends("torch")
def test_the_kernel_of_the_library_would_need_an_array(make):
    verdicts = explain(*(make(x) for x in inputs((1, 4, 800, 8))), bias=AlibiBias(make(SLOPES)))
    assert "no bias but an array of (Sq, Sk)" in verdicts["fused"]
    assert verdicts["tiled"] == "chosen"
    assert "tiled: chosen" in str(verdicts)


def test_it_shows_what_it_holds():
    assert repr(RelativePositionBias(TABLE)) == (
        "RelativePositionBias(table=float32[12, 4], bidirectional=True, max_distance=128)"
    )
    assert [a.shape for a in RelativePositionBias(TABLE).arrays] == [(12, 4)]


class Difference(Bias):
    """A class of a user that says of itself that differences of positions are all that counts."""

    shift_invariant = True

    def __init__(self, weight):
        self.weight = weight

    def values(self, region):
        rows.append(region.sizes[-2])
        return region.per_head(self.weight) * region.floating(region.kv_idx - region.q_idx) ** 2


class OfRows(Difference):
    """A class that inherits the promise and does not keep it, with values of its own."""

    def values(self, region):
        return region.per_head(self.weight) * region.floating(region.q_idx)


class ByKey:
    """Values of a mixin: large ones, and minus infinity."""

    def values(self, region):
        place = region.kv_idx + 0 * region.q_idx
        return region.xp.where(place % 4 == 1, -np.inf, region.floating(place % 3) * 200.0)


class MixedIn(ByKey, AlibiBias):
    """A class whose values are others than those that `AlibiBias` says something of."""


class Anew(AlibiBias):
    values = ByKey.values


rows = []


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("kind", [MixedIn, Anew])
def test_nothing_is_promised_of_other_values(kind, impl):
    arrays, slopes = inputs((1, 2, 70, 8), (1, 2, 90, 8)), np.asarray([0.01, 0.02], np.float32)
    bias, place = kind(slopes), np.arange(90) + np.zeros((70, 1), int)
    whole = np.where(place % 4 == 1, -np.inf, place % 3 * 200.0).astype(np.float32)
    output = flash_attention(*arrays, bias=bias, query_offset=0, impl=impl, tile=(32, 32))
    np.testing.assert_allclose(output, flash_attention(*arrays, bias=whole, impl="dense"), atol=2e-5)
    assert (bias.may_exclude, bias.shift_invariant) == (True, False)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_differences_are_evaluated_once_each(library, impl):
    query, key, value = (library.array(x) for x in inputs((2, 3, 70, 8), (2, 3, 90, 8)))
    weight = np.asarray([0.01, -0.02, 0.03], np.float32)
    places = {"query_offset": library.array(np.asarray([20, 3])), "key_offset": 5}
    position = {"q": np.asarray([20, 3])[:, None, None, None] + np.arange(70)[:, None], "k": 5 + np.arange(90)}
    for kind, values in ((Difference, (position["k"] - position["q"]) ** 2), (OfRows, position["q"])):
        rows.clear()
        output = flash_attention(query, key, value, bias=kind(library.array(weight)), impl=impl, **places)
        whole = np.broadcast_to(weight[:, None, None] * values, (2, 3, 70, 90)).astype(np.float32)
        expected = flash_attention(query, key, value, bias=library.array(whole), impl=impl, **places)
        np.testing.assert_allclose(output, expected, atol=2e-6)
        assert set(rows) == ({1} if kind is Difference else set())
    # Positions that jump are evaluated for each pair.
    jumping = flash_attention(
        query,
        key,
        value,
        bias=Difference(library.array(weight)),
        impl=impl,
        query_offset=0,
        key_positions=library.array(np.arange(90)[::-1].copy()),
    )
    whole = weight[:, None, None] * (np.arange(90)[::-1] - np.arange(70)[:, None]) ** 2
    expected = flash_attention(query, key, value, bias=library.array(whole.astype(np.float32)), impl=impl)
    np.testing.assert_allclose(jumping, expected, atol=2e-6)


class Bent(AlibiBias):
    """Other values than those it inherits what is said of."""

    def values(self, region):
        return 40.0 * region.xp.sin(super().values(region))


@pytest.mark.backends("numpy")
def test_a_class_made_of_another_keeps_none_of_its_promises(library):
    query, key, value = (library.array(x) for x in inputs((1, 4, 70, 8)))
    bias, distance = Bent(library.array(SLOPES)), np.abs(np.arange(70)[:, None] - np.arange(70))
    whole = library.array((40.0 * np.sin(-SLOPES[:, None, None] * distance)).astype(np.float32))
    output = flash_attention(query, key, value, bias=bias, impl="tiled")
    np.testing.assert_allclose(output, flash_attention(query, key, value, bias=whole), atol=1e-5)
    with pytest.raises(ValueError, match="Bent has no gradients"):
        attention_vjp(query, key, value, bias=bias)[1](output)
