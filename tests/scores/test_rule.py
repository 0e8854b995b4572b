"""Masks and biases as values: copied, pickled, moved, and taken apart by JAX."""

import copy
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from attention_xp.masks import BlockMask, CausalMask, LengthMask, Mask, PrefixMask, SegmentMask, WindowMask
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs


class Slotted(Mask):
    """A rule whose number is in a slot, and whose arrays are in a list."""

    __slots__ = ("n",)

    def __init__(self, n, tables):
        self.n = n
        self.tables = tables

    def allowed(self, region):
        return region.kv_idx + region.own(self.tables[0][0]) < self.n


def rules(make):
    """Rules that hold arrays in all ways."""
    counts = make(np.asarray([2, 5]), "int32")
    return {
        "segments": SegmentMask(make(np.asarray([0, 0, 1, 1, 1, 2]), "int32")) & CausalMask(),
        "lengths": ~LengthMask(counts) | PrefixMask(1),
        "a user's": Slotted(7, [(make(np.asarray(2), "int32"),)]) & WindowMask(3, 1),
    }


CLONES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda rule: pickle.loads(pickle.dumps(rule)),  # our own
}


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
@pytest.mark.parametrize("name", ["segments", "lengths", "a user's"])
def test_clones_say_the_same(clone, name):
    mask = rules(np.asarray)[name]
    same = clone(mask)
    assert same is not mask
    np.testing.assert_array_equal(same.to_array(6, 6), mask.to_array(6, 6))
    assert repr(same) == repr(mask)


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_clones_leave_what_was_found_out_behind(clone):
    mask = BlockMask(np.random.default_rng(0).random((32, 32)) < 0.2, 64)
    fresh = len(pickle.dumps(mask))
    x = np.ones((2048, 8), np.float32)
    flash_attention(x, x, x, mask & CausalMask(), impl="tiled")
    assert hasattr(mask, "_kept")
    assert len(pickle.dumps(mask)) == fresh < 4096
    assert not hasattr(clone(mask), "_kept")


@pytest.mark.parametrize("name", ["segments", "lengths", "a user's"])
def test_rules_move(library, make, name):
    mask = rules(make)[name]
    moved = mask.to(library.device())
    assert type(moved) is type(mask)
    query, key, value = (make(a) for a in inputs((2, 1, 6, 4)))
    output = flash_attention(query, key, value, moved, impl="dense")
    assert_close(output, to_numpy(flash_attention(query, key, value, mask, impl="dense")), library)


def test_biases_move(library, make):
    slopes = make(np.asarray([0.5, 0.25]))
    assert_close(AlibiBias(slopes).to(library.device()).slopes, to_numpy(slopes), library)


@pytest.mark.backends("strict")
def test_all_arrays_move_to_another_device(library, xp):
    there = xp.Device("device2")
    mask = (SegmentMask(library.array(np.arange(3), "int32")) & LengthMask(np.asarray(2))).to(there)
    assert mask.left.query_ids.device == there
    assert isinstance(mask.right.lengths, np.ndarray)
    assert RelativePositionBias(library.array(np.ones((4, 1)))).to(there).table.device == there


def test_a_moved_rule_keeps_nothing_that_was_found_out():
    mask = SegmentMask(np.arange(300) // 7)
    x = np.ones((300, 4))
    flash_attention(x, x, x, mask, impl="tiled")
    assert not hasattr(mask.to("cpu"), "_kept")


class ListBias(Bias):
    """A bias with arrays and numbers in a list."""

    def __init__(self, numbers):
        self.numbers = numbers

    def values(self, region):
        slope, at = self.numbers
        return region.floating(region.q_idx - region.kv_idx) * region.floating(region.kv_idx < at) * slope

    def vjp(self, region, grad_scores):
        return ()


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_lists_are_attributes_too(library, make, impl):
    query, key, value = (make(a) for a in inputs((1, 2, 6, 4)))
    first = flash_attention(query, key, value, bias=ListBias([0.5, 3]), impl=impl)
    other = flash_attention(query, key, value, bias=ListBias([0.5, 5]), impl=impl)
    table = flash_attention(query, key, value, bias=ListBias([make(np.asarray(0.5)), 3]), impl=impl)
    q, k = np.arange(6)[:, None], np.arange(6)
    for output, at in ((first, 3), (other, 5), (table, 3)):
        bias = make(0.5 * (q - k) * (k < at))
        assert_close(output, to_numpy(flash_attention(query, key, value, bias=bias, impl="dense")), library)
    assert len(ListBias([make(np.asarray(0.5)), 3]).arrays) == 1


def test_masks_import_no_jax():
    program = "import sys, attention_xp.masks, attention_xp.biases; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


class Labelled(list):
    """A list that says more than its items."""

    def __init__(self, items, label):
        super().__init__(items)
        self.label = label


class Triple(tuple):
    """A tuple of a class of its own, which is no named one."""

    __slots__ = ()


class Holding(Mask):
    """A rule that holds a collection."""

    def __init__(self, held):
        self.held = held

    def allowed(self, region):
        last = self.held.default_factory() if isinstance(self.held, defaultdict) else getattr(self.held, "label", 3)
        return region.kv_idx + self.held[0] * 0 <= region.q_idx * 0 + last + self.held[1] - 2


COLLECTIONS = {
    "Counter": Counter({0: 3, 1: 2}),
    "defaultdict": defaultdict(lambda: 4, {0: 3, 1: 2}),
    "OrderedDict": OrderedDict({1: 2, 0: 3}),
    "list": Labelled([3, 2], 1),
    "tuple": Triple((3, 2, 1)),
}


@pytest.mark.parametrize("held", COLLECTIONS.values(), ids=COLLECTIONS)
def test_collections_of_other_classes(library, make, held):
    mask, made = Holding(held), [make(a) for a in inputs((2, 1, 6, 4))]
    same = mask.to(library.device())
    assert type(same.held) is type(held)
    assert same == mask
    output = flash_attention(*made, same, impl="tiled")
    assert_close(output, to_numpy(flash_attention(*made, Holding(held), impl="dense")), library)


def test_collections_of_other_classes_that_differ():
    assert Holding(Labelled([3, 2], 1)) != Holding(Labelled([3, 2], 2))
    assert Holding(defaultdict(int, {0: 3})) != Holding(defaultdict(list, {0: 3}))
