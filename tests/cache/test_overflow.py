"""Without room: a `ValueError` where lengths are known, else NaN for the item that overflows, and for no other."""

import importlib

import numpy as np
import pytest

from attention_xp.cache import (
    PagedCache,
    RollingCache,
    StaticCache,
    append,
    append_and_attend,
    attend,
    free,
    lengths,
    reorder,
)
from tests._backends import to_numpy
from tests._inputs import normal

B, H, D = 3, 2, 4
ROWS = normal(B, H, 5, D)
COUNTS = np.asarray([5, 2, 4])


def made(library, kind):
    how = {"xp": library.namespace(), "dtype": "float32", "device": library.device()}
    if kind == "static":
        return StaticCache.empty(B, H, 7, D, **how)
    if kind == "short table":
        return PagedCache.empty(B, H, 20, D, page_size=2, pages_per_item=4, **how)
    return PagedCache.empty(B, H, 8, D, page_size=2, **how)  # 3 + 1 + 2 pages at first


KINDS = ["static", "short table", "few pages"]


@pytest.mark.backends("numpy", "strict", "torch", "jax")
@pytest.mark.parametrize("kind", ["static", "few pages"])
def test_known_lengths_are_refused(library, kind):
    rows = library.array(ROWS)
    cache = append(made(library, kind), rows, rows, lengths=library.array(COUNTS))
    before = to_numpy(attend(cache, rows[:, :, :1, :]))
    with pytest.raises(ValueError, match="the cache overflows: "):
        append(cache, rows, rows, lengths=library.array(np.asarray([5, 1, 0])))
    np.testing.assert_array_equal(to_numpy(attend(cache, rows[:, :, :1, :])), before)


def two_steps(cache, rows, first, second):
    cache = append(cache, rows, rows, lengths=first)
    output, cache = append_and_attend(cache, rows, rows, rows, lengths=second)
    return output, cache, attend(cache, rows[:, :, :1, :])


@pytest.mark.with_nan
@pytest.mark.backends("torch", "jax", "cupy")
@pytest.mark.parametrize("kind", KINDS)
def test_unknown_lengths_give_nan_for_the_item_alone(library, xp, kind):
    cache, rows = made(library, kind), library.array(ROWS)
    counts = [library.array(COUNTS), library.array(np.asarray([5, 1, 2]))]
    step = two_steps
    if library.like("jax"):
        step = importlib.import_module("jax").jit(two_steps)
    elif library.like("torch"):
        step = importlib.import_module("torch").compile(two_steps, backend="eager", fullgraph=True)
    output, after, again = step(cache, rows, *counts)
    for found in (to_numpy(output), to_numpy(again)):
        assert np.isnan(found[0]).all()
        assert not np.isnan(found[1:]).any()
    np.testing.assert_array_equal(to_numpy(lengths(after)), [10, 3, 6])
    smaller = [library.array(np.where(np.arange(B) == 0, 0, n)) for n in (COUNTS, [5, 1, 2])]
    alone = two_steps(made(library, kind), rows, *smaller)[2]
    np.testing.assert_allclose(to_numpy(again)[1:], to_numpy(alone)[1:], atol=2e-6)
    if library.like("torch"):  # freed, it is as good as new
        after = free(after, library.array(np.asarray([True, False, False])))
        after = append(after, rows[:, :, :2, :], rows[:, :, :2, :], lengths=library.array(np.asarray([2, 0, 0])))
        assert not np.isnan(to_numpy(attend(after, rows[:, :, :1, :]))).any()


@pytest.mark.with_nan
@pytest.mark.backends("torch", "jax")
def test_an_item_without_room_does_not_write_into_a_page_that_it_shares(library, xp):
    how = {"xp": xp, "dtype": "float32", "device": library.device()}
    rows, make = library.array(ROWS), library.array
    cache = append(PagedCache.empty(1, H, 9, D, page_size=2, pages_per_item=2, **how), rows[:1, :, :3], rows[:1, :, :3])

    def split(cache, rows, items, counts):
        cache = append(reorder(cache, items), rows, rows, lengths=counts)
        return attend(cache, rows), cache

    step = importlib.import_module("jax").jit(split) if library.like("jax") else None
    step = step or importlib.import_module("torch").compile(split, backend="eager", fullgraph=True)
    before = to_numpy(attend(cache, rows[1:2]))
    output, after = step(cache, rows[:2], make(np.asarray([0, 0])), make(np.asarray([4, 0])))
    assert np.isnan(to_numpy(output)[0]).all()
    np.testing.assert_allclose(to_numpy(output)[1:], before, atol=2e-6)
    again = append(after, rows[:2, :, :1], rows[:2, :, :1], lengths=make(np.asarray([0, 1])))
    assert not np.isnan(to_numpy(attend(again, rows[:2]))[1]).any()


@pytest.mark.with_nan
@pytest.mark.backends("jax")
@pytest.mark.parametrize("kind", ["static", "few pages", "rolling"])
def test_an_item_that_there_is_not_gives_nan_alone(library, xp, kind):
    """Inside `jax.jit`, where nobody can look at the items."""
    how = {"xp": xp, "dtype": "float32"}
    cache = RollingCache.empty(B, H, 3, D, **how) if kind == "rolling" else made(library, kind)
    rows = library.array(ROWS)[:, :, :2, :]

    def reordered(cache, items):
        output, cache = append_and_attend(
            reorder(cache, items), rows[:, :, :1, :], rows[:, :, :1, :], rows[:, :, :1, :]
        )
        return output, attend(cache, rows[:, :, :1, :])

    step = importlib.import_module("jax").jit(reordered)
    cache = append(cache, rows, rows)
    right, wrong = (step(cache, library.array(np.asarray([2, last, 0]))) for last in (1, 3))
    for x, y in zip(map(to_numpy, right), map(to_numpy, wrong), strict=True):
        assert np.isnan(y[1]).all()
        np.testing.assert_array_equal(y[[0, 2]], x[[0, 2]])
