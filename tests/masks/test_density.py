"""The share of allowed pairs, counted without the whole array, and the picture."""

import time

import numpy as np
import pytest

from attention_xp import masks
from attention_xp.masks import (
    BlockMask,
    CausalMask,
    FunctionMask,
    LengthMask,
    PrefixMask,
    SegmentMask,
    StridedMask,
    WindowMask,
    _drawing,
)
from tests.masks._cases import CASES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("Sq", "Sk", "offset"), [(11, 13, 0), (4, 9, 5), (40, 30, -3)])
def test_exact(make, case, Sq, Sk, offset):
    table = case.table(*(case.lead or (1, 1)), range(offset, offset + Sq), range(Sk))
    assert case.build(make).density(Sq, Sk, offset) == table.mean()


@pytest.mark.parametrize("name", ["causal", "segments of a batch", "blocks of batch and heads", "neither", "function"])
def test_exact_over_many_blocks(monkeypatch, name):
    monkeypatch.setattr(_drawing, "_BLOCK", 16)
    monkeypatch.setattr(_drawing, "_PAIRS_AT_ONCE", 100)
    mask = CASES[name].build(np.asarray)
    assert mask.density(70, 50, 2) == mask.to_array(70, 50, 2).mean()


@pytest.mark.parametrize(("Sq", "Sk"), [(0, 5), (5, 0)])
def test_of_no_pairs(Sq, Sk):
    assert CausalMask().density(Sq, Sk) == 0.0


def test_of_a_long_sequence():
    start, S = time.process_time(), 2**18
    assert (CausalMask() & WindowMask(255, 0)).density(S, S) == (256 * S - 256 * 255 // 2) / S**2
    assert SegmentMask(np.arange(S) // 2**16).density(S, S) == 0.25
    assert time.process_time() - start < 20.0


def test_many_heads_and_items():
    layout = np.random.default_rng(0).random((4, 8, 16, 16)) < 0.3
    assert BlockMask(layout, 32).density(512, 512) == layout.mean()


def test_picture():
    assert str(CausalMask() & WindowMask(1, 0)).splitlines()[:4] == [
        "(CausalMask() & WindowMask(1, 0)): 32 queries x 32 keys",
        "█" + "·" * 31,
        "██" + "·" * 30,
        "·██" + "·" * 29,
    ]


def test_a_picture_shows_what_is_mixed():
    picture = str(BlockMask(np.asarray([[True, False], [False, True]]), 33)).splitlines()
    assert picture[0] == "BlockMask(bool[2, 2], (33, 33)): 66 queries x 66 keys"
    assert picture[1:] == ["█" * 11 + "·" * 11] * 11 + ["·" * 11 + "█" * 11] * 11
    assert "▒" in str(CausalMask() | PrefixMask(40))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_picture_is_small(make, case):
    title, *rows = str(case.build(make)).splitlines()
    assert len(rows) <= 32
    assert {len(row) for row in rows} <= {len(rows[0])}
    assert len(rows[0]) <= 32
    assert set("".join(rows)) <= set("·▒█")
    assert title.endswith(", first batch item and head") is (int(np.prod(case.lead)) > 1)


def causal(b, h, q_idx, kv_idx):
    """A function with a name."""
    return q_idx >= kv_idx


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (CausalMask(), "CausalMask()"),
        (WindowMask(3, None), "WindowMask(3, None)"),
        (~StridedMask(4), "~StridedMask(4)"),
        (CausalMask() | PrefixMask(3), "(CausalMask() | PrefixMask(3))"),
        (LengthMask(np.asarray([3, 4])), "LengthMask(int64[2])"),
        (SegmentMask(np.zeros((2, 5), np.int32)), "SegmentMask(int32[2, 5])"),
        (SegmentMask(np.zeros(5, np.int8), np.zeros(3, np.int8)), "SegmentMask(int8[5], int8[3])"),
        (BlockMask(np.ones((4, 2, 2), bool), (4, 8)), "BlockMask(bool[4, 2, 2], (4, 8))"),
        (FunctionMask(causal), "FunctionMask(causal)"),
        (~(CausalMask() & FunctionMask(causal)), "~(CausalMask() & FunctionMask(causal))"),
    ],
    ids=str,
)
def test_repr_is_short(mask, text):
    str(mask)
    assert repr(mask) == text


def test_all_names_are_there():
    assert list(masks.__all__) == sorted(masks.__all__)
    assert all(hasattr(masks, name) for name in masks.__all__)
