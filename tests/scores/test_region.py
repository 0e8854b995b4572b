"""The index arrays of the scores."""

import numpy as np
import pytest

from attention_xp._engine.problem.problem import Problem
from attention_xp._scores.region import Region
from tests._assertions import assert_equal
from tests._backends import to_numpy
from tests._inputs import inputs, normal

SHAPES = [(5, 8), (2, 5, 8), (2, 4, 5, 8), (3, 2, 4, 5, 8)]


def region(make, shape, **options):
    """The region of a call whose query, key and value have one shape."""
    return Region.whole(Problem.of(*(make(x) for x in inputs(shape)), None, 0.0, options))


@pytest.mark.parametrize("shape", SHAPES)
def test_indices_broadcast_to_the_scores_and_number_them(make, shape):
    r, scores = region(make, shape), (*shape[:-1], 5)
    flat = np.arange(int(np.prod(shape[:-3] if len(shape) > 3 else shape[:-2])))
    b, h, q_idx, kv_idx = (np.broadcast_to(to_numpy(x), scores) for x in (r.b, r.h, r.q_idx, r.kv_idx))
    assert np.unique(b).tolist() == flat.tolist()
    np.testing.assert_array_equal(b.reshape(flat.size, -1)[:, 0], flat)
    np.testing.assert_array_equal(kv_idx[..., 0, :], np.broadcast_to(np.arange(5), (*scores[:-2], 5)))
    np.testing.assert_array_equal(q_idx[..., :, 0], np.broadcast_to(np.arange(5), (*scores[:-2], 5)))
    heads = np.arange(shape[-3] if len(shape) > 3 else 1)
    assert np.unique(h).tolist() == heads.tolist()


@pytest.mark.parametrize("name", ["b", "h", "q_idx", "kv_idx", "row"])
def test_indices_are_int32_on_the_device_of_the_query(library, make, name):
    index = getattr(region(make, (2, 4, 5, 8)), name)
    assert_equal(index, to_numpy(index), library, dtype="int32")


def test_query_positions_start_at_the_offset(library, make):
    r = region(make, (2, 4, 5, 8), query_offset=make([3, 10]))
    expected = np.arange(5)[:, None] + np.asarray([3, 10]).reshape(2, 1, 1, 1)
    assert_equal(r.q_idx, expected, library, dtype="int32")
    assert_equal(r.row, np.arange(5)[None, None, :, None], library, dtype="int32")


@pytest.mark.parametrize("shape", SHAPES)
def test_indices_have_all_the_axes_of_the_scores(make, shape):
    r = region(make, shape, query_offset=3)
    heads = shape[-3] if len(shape) > 3 else None
    numbers = make(np.ones(() if heads is None else (heads,)))
    offsets = make(np.zeros(shape[:-3] if heads else shape[:-2], np.int32))
    for index in (r.b, r.h, r.q_idx, r.kv_idx, r.row, r.column, r.per_head(numbers), r.per_batch(offsets)):
        assert index.ndim == len(shape)


@pytest.mark.parametrize("name", ["b", "h", "q_idx", "kv_idx", "row"])
def test_a_part_sees_the_piece_of_the_whole(library, make, name):
    whole = region(make, (3, 2, 4, 5, 8), query_offset=make([[3, 1], [0, 9], [2, 2]]))
    starts, sizes = (1, 0, 2, 1, 3), (2, 2, 1, 3, 2)
    part = Region(whole.frame, starts, sizes)
    piece = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    expected = np.broadcast_to(to_numpy(getattr(whole, name)), (3, 2, 4, 5, 5))[piece]
    np.testing.assert_array_equal(np.broadcast_to(to_numpy(getattr(part, name)), sizes), expected)


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (5, 1), (4, 1, 1), (2, 1, 5, 5), (2, 4, 5, 5)])
@pytest.mark.parametrize("sizes", [(2, 3, 5, 3), (1, 2, 3, 2), (1, 1, 0, 2), (1, 1, 2, 0)])
def test_looking_up_a_piece_of_an_array(make, shape, sizes):
    array = normal(*shape) if shape else np.asarray(0.5)
    part = Region(region(make, (2, 4, 5, 8)).frame, (0, 1, 0, 2), sizes)
    piece = tuple(slice(start, start + size) for start, size in zip((0, 1, 0, 2), sizes, strict=True))
    expected = np.broadcast_to(array, (2, 4, 5, 5))[piece]
    found = to_numpy(part.look_up(make(array)))
    assert all(m == 1 for n, m in zip(shape, found.shape, strict=True) if n == 1)
    np.testing.assert_allclose(np.broadcast_to(found, expected.shape), expected, rtol=1e-6)
