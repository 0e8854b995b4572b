"""Whole rectangles: never wrongly called empty or full, and decided where the rule can decide."""

import importlib

import numpy as np
import pytest
from hypothesis import given, strategies as st

from attention_xp._scores.region import Span
from attention_xp.masks import BlockMask, GlobalMask, LengthMask, Mask, SegmentMask
from tests._backends import to_numpy
from tests.masks._cases import CASES, EXACT

B, H, LOW, HIGH, KEYS = 2, 3, -3, 20, 16
TABLES = {name: case.table(B, H, range(LOW, HIGH), range(KEYS)) for name, case in CASES.items()}
MASKS = {name: case.build(np.asarray) for name, case in CASES.items()}

names = st.sampled_from(list(CASES))
offsets = st.integers(-2, 6)


@st.composite
def rectangles(draw):
    """Bounds of rows and keys, both ends included, and an offset."""
    offset = draw(st.integers(-3, 4))
    row_lo, row_hi = sorted(draw(st.tuples(*[st.integers(0, HIGH - 5)] * 2)))
    k_lo, k_hi = sorted(draw(st.tuples(*[st.integers(0, KEYS - 1)] * 2)))
    return row_lo, row_hi, row_lo + offset, row_hi + offset, k_lo, k_hi


def pairs(name, rectangle, b, h):
    """What the rule says about the pairs of a rectangle, for the batch items and heads that are meant."""
    _, _, q_lo, q_hi, k_lo, k_hi = rectangle
    table = TABLES[name][slice(None) if b is None else slice(b, b + 1)]
    table = table[:, slice(None) if h is None else slice(h, h + 1)]
    return table[..., q_lo - LOW : q_hi - LOW + 1, k_lo : k_hi + 1]


@given(names, rectangles(), st.sampled_from([None, 0, 1]), st.sampled_from([None, 0, 1, 2]))
def test_one_rectangle(name, rectangle, b, h):
    possible, certain = MASKS[name].reach(Span(np, *rectangle, b, h))
    assert type(possible) is bool
    assert type(certain) is bool
    truth = pairs(name, rectangle, b, h)
    assert possible or not truth.any()
    assert truth.all() or not certain


@pytest.mark.parametrize("name", EXACT)
@given(rectangle=rectangles(), b=st.integers(0, 1), h=st.integers(0, 2))
def test_rules_decide_every_rectangle(name, rectangle, b, h):
    truth = pairs(name, rectangle, b, h)
    assert MASKS[name].reach(Span(np, *rectangle, b, h)) == (truth.any(), truth.all())


def grid(xp, device, offset, block, *, known):
    """All blocks of some rows and keys as a span of arrays, and the same as single rectangles."""
    rows, keys = np.arange(0, HIGH - 6, block[0]), np.arange(0, KEYS, block[1])
    last_row, last_key = np.minimum(rows + block[0], HIGH - 6) - 1, np.minimum(keys + block[1], KEYS) - 1
    b, h = np.arange(B)[:, None, None, None], np.arange(H)[:, None, None]
    columns = [x[:, None] for x in (rows, last_row, rows + offset, last_row + offset)]
    columns += [keys[None, :], last_key[None, :]]
    columns += [b, h] if known else []
    axes = 4 if known else 2
    wide = [x.reshape((1,) * (axes - x.ndim) + x.shape).astype(np.int32) for x in columns]
    arrays = [xp.asarray(x, device=device) for x in wide]
    return Span(xp, *arrays, *(() if known else (None, None))), columns[:6]


def check_grid(name, answers, columns, *, known=True, exact=True):
    """Compare the answers for a grid with the truth."""
    answers = [np.broadcast_to(to_numpy(x), (B, H, columns[0].size, columns[4].size)) for x in answers]
    for (b, h, i, j), possible in np.ndenumerate(answers[0]):
        rectangle = [int(x[i, 0]) for x in columns[:4]] + [int(x[0, j]) for x in columns[4:]]
        truth = pairs(name, rectangle, *((b, h) if known else (None, None)))
        certain = answers[1][b, h, i, j]
        assert possible or not truth.any()
        assert truth.all() or not certain
        if exact and known and name in EXACT:
            assert (possible, certain) == (truth.any(), truth.all())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("offset", "block"), [(0, (4, 4)), (3, (2, 5)), (-2, (3, 1))])
def test_many_rectangles(xp, device, make, name, known, offset, block):
    span, columns = grid(xp, device, offset, block, known=known)
    check_grid(name, CASES[name].build(make).reach(span), columns, known=known)
    check_grid(name, MASKS[name].reach(span), columns, known=known)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["own", "numpy"])
def test_traced(xp, device, make, name, kind):
    (_, *bounds), columns = grid(xp, device, 1, (4, 3), known=True)
    arrays = []
    CASES[name].build(lambda values: arrays.append(make(values)) or values)

    def reach(bounds, arrays):
        left = list(arrays)
        mask = CASES[name].build((lambda values: left.pop(0)) if kind == "own" else np.asarray)
        return mask.reach(Span(xp, *bounds))

    check_grid(name, importlib.import_module("jax").jit(reach)(bounds, arrays), columns)


@pytest.mark.backends("torch", "jax", "strict", "cupy")
@pytest.mark.parametrize("name", CASES)
def test_arrays_out_of_reach_say_nothing_wrong(make, name):
    mask = CASES[name].build(make)
    for span in (Span(np, 0, 3, 0, 3, 0, 3, 0, 0), Span(None, 0, 3, 0, 3, 0, 3, None, None)):
        possible, certain = mask.reach(span)
        truth = pairs(name, (0, 3, 0, 3, 0, 3), span.b, span.h)
        assert type(possible) is type(certain) is bool
        assert possible or not truth.any()
        assert truth.all() or not certain
    span, columns = grid(np, "cpu", 0, (4, 4), known=True)
    check_grid(name, mask.reach(span), columns, exact=False)


def test_an_unknown_rule_says_nothing():
    assert Mask().reach(Span(np, 0, 3, 0, 3, 0, 3, 0, 0)) == (True, False)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (1, 1), (2, 3), (3,), (1,), ()])
def test_lengths_of_several_leading_axes(shape):
    lengths = np.arange(1, 1 + int(np.prod(shape))).reshape(shape)
    mask, whole = LengthMask(lengths), np.broadcast_to(lengths, (2, 3) if shape[-1:] != (2,) else (3, 2)).ravel()
    for b, length in enumerate(whole):
        for lo, hi in ((0, 0), (0, 3), (2, 6), (6, 9)):
            possible, certain = mask.reach(Span(np, 0, 0, 0, 0, lo, hi, b, 0))
            assert possible or lo >= length
            assert hi < length or not certain


def test_leading_axes_of_length_zero():
    span = Span(np, 0, 3, 0, 3, 0, 3, None, None)
    assert LengthMask(np.zeros(0, int)).reach(span) == (True, False)
    assert SegmentMask(np.zeros((0, 4), int)).reach(span) == (True, False)
    assert BlockMask(np.zeros((0, 1, 2, 2), bool), 2).reach(span) == (True, False)
    assert GlobalMask(np.zeros(0, bool)).reach(span) == (False, False)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.data())
def test_ranges_of_ids(ids, data):
    bounds = st.tuples(*[st.integers(-3, len(ids) + 3)] * 2).map(sorted)
    (q_lo, q_hi), (k_lo, k_hi) = data.draw(bounds), data.draw(bounds)
    mask = SegmentMask(np.asarray(ids))
    possible, certain = mask.reach(Span(np, q_lo, q_hi, q_lo, q_hi, k_lo, k_hi, 0, 0))
    q_ids, k_ids = (
        [ids[i] if 0 <= i < len(ids) else None for i in range(lo, hi + 1)] for lo, hi in ((q_lo, q_hi), (k_lo, k_hi))
    )
    truth = [q is not None and q == k for q in q_ids for k in k_ids]
    assert possible or not any(truth)
    assert certain == all(truth)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("kind", ["blocks", "segments", "global", "lengths"])
def test_tensors_in_memory_are_planned_with_as_arrays_of_numpy_are(make, kind):
    """What lies on the host is read there, also for numbers that NumPy does not compute with."""
    problem_of = importlib.import_module("attention_xp._engine.problem.problem").Problem.of
    tiles_of_rows = importlib.import_module("attention_xp._engine.plan.row_tiles").tiles_of_rows
    x = make(np.ones((2, 1, 64, 8)), "bfloat16")

    def visited(made):
        mask = {
            "blocks": lambda: BlockMask(made(np.eye(8, dtype=bool)), 8),
            "segments": lambda: SegmentMask(made(np.arange(64) // 8)),
            "global": lambda: GlobalMask(made(np.arange(64) == 20)),
            "lengths": lambda: LengthMask(made(np.asarray([9, 17]))) | GlobalMask(made(np.arange(64) == 20)),
        }[kind]()
        problem = problem_of(x, x, x, mask, 0.0, {})
        return [[tile.columns for tile in tiles_of_rows(problem, row, row + 16, 16)] for row in range(0, 64, 16)]

    assert visited(make) == visited(np.asarray)
    assert sum(map(len, visited(make))) < 4 * 4
