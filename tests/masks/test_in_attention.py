"""Masks in attention: the same as the array they stand for."""

import importlib

import numpy as np
import pytest

from attention_xp import flash_attention, masks
from attention_xp.biases import RelativePositionBias
from attention_xp.masks import (
    BlockMask,
    CausalMask,
    GlobalMask,
    LengthMask,
    PrefixMask,
    SegmentMask,
    WindowMask,
    sparse_transformer_mask,
)
from tests import reference
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs
from tests._quick import some_rare
from tests.conftest import IMPLS
from tests.masks._cases import ALIKE, CASES

QKV = inputs((2, 6, 5, 8), (2, 3, 9, 8))  # grouped heads, Sq != Sk
HEADS = 6

# Rules that depend on heads are made for 3 of them.
names = pytest.mark.parametrize("name", [n for n in CASES if n != "vast window"])
transformed = pytest.mark.parametrize(
    "name", some_rare({n: n for n in CASES if n != "vast window"}, lambda name: name in ALIKE)
)


def table(name, heads, rows, columns=range(9), batch=2):
    """The mask as an array for all batch items and heads."""
    return CASES[name].table(batch, heads, rows, columns)


def heads_of(name):
    """Inputs with the number of heads that a rule is made for."""
    return inputs((2, 3, 5, 8), (2, 3, 9, 8)) if CASES[name].lead[1:] == (3,) else QKV


@names
@pytest.mark.parametrize(("kind", "offset"), [("own", 0), ("numpy", 4)])
def test_same_as_the_array(library, make, impl, name, offset, kind):
    q, k, v = heads_of(name)
    mask = CASES[name].build(make if kind == "own" else np.asarray)
    output = flash_attention(*map(make, (q, k, v)), mask, query_offset=offset, impl=impl)
    keep = table(name, q.shape[1], range(offset, offset + 5))
    assert_close(output, reference.attention(q, k, v, keep).output, library)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_ids_without_a_sign(library, impl, dtype):
    ids = np.arange(9) // 3
    q, k, v = map(library.array, QKV)
    output = flash_attention(q, k, v, SegmentMask(library.array(ids.astype(dtype))), query_offset=0, impl=impl)
    keep = ids[:5, None] == ids
    assert_close(output, reference.attention(*QKV, keep).output, library)


@names
def test_an_offset_for_each_batch_item(library, make, impl, name):
    q, k, v = heads_of(name)
    output = flash_attention(
        *map(make, (q, k, v)), CASES[name].build(make), query_offset=make(np.asarray([1, 4])), impl=impl
    )
    keep = np.concatenate([table(name, q.shape[1], range(o, o + 5))[[b]] for b, o in enumerate((1, 4))])
    assert_close(output, reference.attention(q, k, v, keep).output, library)


NO_LIMIT = {
    "length": lambda make: {"mask": LengthMask(2**32)},
    "block": lambda make: {"mask": BlockMask(make(np.ones((1, 1), bool)), 2**32)},
    "chunk": lambda make: {"mask": sparse_transformer_mask(2**32, "fixed") | PrefixMask(9)},
    "lengths": lambda make: {"mask": LengthMask(make([2**62] * 2, "int64"))},
    "query_lengths": lambda make: {"query_lengths": make([2**63 - 1] * 2, "int64")},
    "unsigned": lambda make: {"key_lengths": make([2**31] * 2, "uint32")},
    "unsigned_64": lambda make: {"key_lengths": make([2**32 + 1] * 2, "uint64")},
    "buckets": lambda make: {"bias": RelativePositionBias(make(np.zeros(32)), max_distance=2**40)},
}


@pytest.mark.parametrize("limit", NO_LIMIT.values(), ids=NO_LIMIT)
def test_a_limit_that_no_position_reaches(library, xp, make, impl, limit):
    if {"int64", "uint64"} & set(limit.__code__.co_consts) and library.like("jax") and xp.asarray(1).dtype != xp.int64:
        pytest.skip("without x64, JAX has no such numbers")
    output = flash_attention(*map(make, QKV), query_offset=0, impl=impl, **limit(make))
    assert_close(output, reference.attention(*QKV).output, library)


@pytest.mark.backends("numpy", "strict")
def test_a_limit_that_no_signed_integer_holds(library, make):
    output = flash_attention(*map(make, QKV), key_lengths=make([2**64 - 1] * 2, "uint64"))
    assert_close(output, reference.attention(*QKV).output, library)


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (3, 2, 4, 5, 8)])
def test_any_number_of_axes(library, make, impl, shape):
    q, k, v = inputs(shape)
    mask = (CausalMask() | PrefixMask(2)) & ~GlobalMask(make(np.arange(5) == 3)) | SegmentMask(make(np.arange(5) // 2))
    keep = to_numpy(mask.to_array(5, 5))
    output = flash_attention(*map(make, (q, k, v)), mask, impl=impl)
    assert_close(output, reference.attention(q, k, v, keep).output, library)


def test_without_a_heads_axis(library, make, impl):
    q, k, v = inputs((2, 5, 8))
    layout = np.asarray([[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]], [[[1, 1, 0], [0, 1, 0], [1, 1, 1]]]], dtype=bool)
    mask = BlockMask(make(layout), 2) & LengthMask(make([5, 3]))
    keep = np.repeat(np.repeat(layout, 2, axis=-2), 2, axis=-1)[:, 0, :5, :5]
    keep = keep & (np.arange(5) < np.asarray([5, 3])[:, None, None])
    assert_close(
        flash_attention(*map(make, (q, k, v)), mask, impl=impl), reference.attention(q, k, v, keep).output, library
    )


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 1), (1, 1), (3, 2)])
def test_batches_of_several_axes_broadcast(library, make, impl, shape):
    q, k, v = inputs((3, 2, 4, 5, 8))
    lengths = np.arange(1, 1 + int(np.prod(shape))).reshape(shape) % 6
    ids = (np.arange(5) + lengths[..., None]) // 2
    mask = LengthMask(make(lengths)) | SegmentMask(make(ids))
    keep = (np.arange(5) < lengths[..., None, None]) | (ids[..., :, None] == ids[..., None, :])
    output = flash_attention(*map(make, (q, k, v)), mask, impl=impl)
    assert_close(output, reference.attention(q, k, v, keep[..., None, :, :]).output, library)


@pytest.mark.parametrize("mask", [CausalMask(), WindowMask(2, 2), ~WindowMask(1, 0) & PrefixMask(3)], ids=repr)
def test_the_alignment_is_never_guessed(make, mask):
    with pytest.raises(ValueError, match="query_offset"):
        flash_attention(*map(make, QKV), mask)


def test_rules_that_know_no_alignment_need_none(library, make):
    output = flash_attention(*map(make, QKV), masks.StridedMask(2) | PrefixMask(3))
    q, k = np.arange(5)[:, None], np.arange(9)
    assert_close(output, reference.attention(*QKV, ((q - k) % 2 == 0) | (k < 3)).output, library)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (LengthMask(np.asarray([1, 2, 3])), r"leading axes of lengths .*: expected \(2, 6\), got \(3, 1\) from Length"),
        (PrefixMask(np.asarray([[1, 2]] * 2)), "leading axes of length "),
        (SegmentMask(np.zeros((4, 9), int)), "leading axes of query_ids"),
        (SegmentMask(np.zeros(9, int), np.zeros((4, 9), int)), "leading axes of query_ids"),
        (BlockMask(np.ones((4, 2, 2), bool), 8), r"leading axes of layout .*: expected \(2, 6\), got \(4,\)"),
        (~(PrefixMask(3) | LengthMask(np.zeros(5, int))), "leading axes of lengths"),
    ],
    ids=repr,
)
def test_leading_axes_that_do_not_fit(make, impl, mask, message):
    with pytest.raises(ValueError, match=message):
        flash_attention(*map(make, QKV), mask, impl=impl)


def test_heads_of_a_layout_where_there_are_none(make, impl):
    with pytest.raises(ValueError, match="leading axes of layout"):
        flash_attention(*(make(x) for x in inputs((3, 5, 8))), BlockMask(np.ones((3, 1, 1), bool), 8), impl=impl)


@pytest.mark.backends("numpy")
def test_arrays_of_another_library(make, impl):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="lengths is an array of torch: expected NumPy or the library of the query"):
        flash_attention(*map(make, QKV), LengthMask(torch.tensor([1, 2])), impl=impl)


@pytest.mark.backends("strict")
def test_arrays_on_another_device(xp, make, impl):
    with pytest.raises(ValueError, match="lengths is on"):
        flash_attention(*map(make, QKV), LengthMask(xp.asarray([1, 2], device=xp.Device("device2"))), impl=impl)


# One of each rule, with arrays where it has any, and both operators; torch cannot compile the third one, ~.
COMPILED = [
    "window", "strided", "prefixes", "lengths", "segments of queries and keys", "global", "blocks of batch and heads",
    "function", "prefix LM", "causal segments",
]  # fmt: skip


def attend(name):
    """Attention with a mask that is made inside, from the arrays that come in."""

    def call(q, k, v, *arrays):
        left = list(arrays)
        mask = CASES[name].build(lambda values: left.pop(0))
        return flash_attention(q, k, v, mask, query_offset=4, impl="dense")

    return call


def arguments(name, make):
    """Inputs, and the arrays of a mask."""
    found = []
    CASES[name].build(lambda values: found.append(values) or values)
    return [make(x) for x in (*heads_of(name), *found)]


@transformed
@pytest.mark.backends("jax")
def test_jit(library, make, name):
    made, call = arguments(name, make), attend(name)
    np.testing.assert_allclose(
        to_numpy(importlib.import_module("jax").jit(call)(*made)), to_numpy(call(*made)), atol=1e-6
    )


@pytest.mark.backends("torch")
def test_the_opposite_inside_a_compiled_function(library, make):
    """torch cannot compile the operator ~, but the method that it stands for."""
    torch, x = importlib.import_module("torch"), make(inputs((2, 5, 8)).query)

    def attend(x):
        return flash_attention(x, x, x, (CausalMask() | WindowMask(1, 1)).__invert__() | PrefixMask(2))

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    np.testing.assert_allclose(to_numpy(compiled(x)), to_numpy(attend(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.backends("torch")
def test_compile(library, make, name):
    torch, made, call = importlib.import_module("torch"), arguments(name, make), attend(name)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    np.testing.assert_allclose(to_numpy(compiled(*made)), to_numpy(call(*made)), atol=1e-6)


@transformed
@pytest.mark.backends("jax", "torch")
def test_vmap(library, make, name):
    module = importlib.import_module(library.library)
    vmap = module.vmap if library.like("jax") else module.func.vmap
    made, call = arguments(name, lambda x: x), attend(name)
    stacked = [np.stack([x, np.roll(x, 1, axis=-1)]) for x in made]
    mapped = to_numpy(vmap(call)(*map(make, stacked)))
    for i in range(2):
        np.testing.assert_allclose(mapped[i], to_numpy(call(*(make(x[i]) for x in stacked))), atol=1e-6)


OUTSIDE = ["segments of a batch", "blocks of heads", "global", "neither", "function"]


@pytest.mark.parametrize(  # each two of the three together
    ("name", "kind", "impl"),
    [(n, k, IMPLS[(i + j) % 2]) for i, n in enumerate(OUTSIDE) for j, k in enumerate(["own", "numpy"])],
)
@pytest.mark.backends("torch", "jax")
def test_a_mask_made_outside_of_the_compiled_function(library, make, impl, name, kind):
    mask, made = CASES[name].build(make if kind == "own" else np.asarray), [make(x) for x in heads_of(name)]

    def call(q, k, v):
        return flash_attention(q, k, v, mask, query_offset=4, impl=impl)

    if library.like("jax"):
        compiled = importlib.import_module("jax").jit(call)
    else:
        torch = importlib.import_module("torch")
        torch.compiler.reset()
        compiled = torch.compile(call, fullgraph=True, backend="eager")
    np.testing.assert_allclose(to_numpy(compiled(*made)), to_numpy(call(*made)), atol=1e-6)


@pytest.mark.backends("torch")
def test_read_only_numpy_arrays(library, make):
    layout = np.asarray([[[True, False], [True, True]]])
    layout.flags.writeable = False
    output = flash_attention(*map(make, QKV), BlockMask(layout, 4), impl="dense")
    keep = np.repeat(np.repeat(layout, 4, axis=-2), 4, axis=-1)[:, :5, :8]
    keep = np.concatenate([keep, np.zeros((1, 5, 1), bool)], axis=-1)
    assert_close(output, reference.attention(*QKV, keep).output, library)


@pytest.mark.backends("torch")
def test_an_array_in_a_compiled_function(library, make):
    torch, x = importlib.import_module("torch"), make(inputs((2, 5, 8)).query)
    keep = library.array(np.arange(10).reshape(2, 1, 5) % 3 > 0)
    given = CausalMask() & keep

    def attend(x):
        return flash_attention(x, x, x, given | (PrefixMask(1) & masks.ArrayMask(keep)))

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    np.testing.assert_allclose(to_numpy(compiled(x)), to_numpy(attend(x)), rtol=1e-5, atol=1e-6)


class _NoThird(CausalMask):
    """Another rule than the one it is made of, which says nothing of itself."""

    def allowed(self, region):
        return super().allowed(region) & ((region.q_idx - region.kv_idx) % 3 != 1)


class _OfFirstItem(WindowMask):
    """Likewise, beside what its window allows."""

    def allowed(self, region):
        return (super().allowed(region) & (region.b == 0)) | (region.q_idx == region.kv_idx + 90)


@pytest.mark.parametrize("mask", [_NoThird(), _OfFirstItem(20, 0)], ids=["causal", "window"])
@pytest.mark.parametrize("impl", ["tiled", "auto"])
def test_a_class_made_of_another_keeps_none_of_its_promises(library, impl, mask):
    arrays = inputs((2, 2, 300, 8))
    q, k = np.arange(300)[:, None], np.arange(300)
    if isinstance(mask, CausalMask):
        keep = (q >= k) & ((q - k) % 3 != 1)
    else:
        item = np.arange(2)[:, None, None, None]
        keep = ((q >= k) & (q - k <= 20) & (item == 0)) | (q == k + 90)
    expected = reference.attention(*arrays, mask=np.broadcast_to(keep, (2, 1, 300, 300)))
    output = flash_attention(*(library.array(x) for x in arrays), mask, query_offset=0, impl=impl)
    np.testing.assert_allclose(to_numpy(output), expected.output, atol=2e-6)
    assert not mask.shift_invariant
