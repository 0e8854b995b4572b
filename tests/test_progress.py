"""`progress`: what is reported of calls, when, and to whom."""

import io
import sys
import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from attention_xp import attention_statistics, attention_vjp, flash_attention, progress
from tests._backends import to_numpy
from tests._inputs import inputs

QUERY, KEY, VALUE = inputs((1, 4, 96, 8))
TILED = {"impl": "tiled", "tile": (16, 32), "is_causal": True}
BLOCKS = 6  # of 16 rows
WITHOUT_PROGRAMS = pytest.mark.backends("numpy", "strict", "torch", "cupy")


@pytest.fixture
def seen():
    """What is reported."""
    return []


@pytest.fixture
def arrays(library):
    return [*map(library.array, (QUERY, KEY, VALUE))]


def into(seen):
    return progress(lambda done, total: seen.append((done, total)))


def check_counts(seen):
    """Neither number falls, jobs end one at a time, and all that were begun are done."""
    done, total = np.transpose(seen)
    assert seen[0][0] == 0
    assert set(np.diff(done)) <= {0, 1}
    assert (np.diff(total) >= 0).all()
    assert done[-1] == total[-1] > 1
    assert (done <= total).all()


@WITHOUT_PROGRAMS
def test_every_block_of_rows_is_reported(library, arrays, seen):
    with into(seen):
        output = flash_attention(*arrays, **TILED)
    check_counts(seen)
    heads = 4 if library.like("numpy") else 1  # whose walker hands them out one by one
    assert len(seen) == 1 + BLOCKS * heads
    assert_array_equal(to_numpy(output), to_numpy(flash_attention(*arrays, **TILED)))


@WITHOUT_PROGRAMS
def test_the_way_back_and_statistics_are_counted_on(library, arrays, seen):
    with into(seen):
        output, vjp = attention_vjp(*arrays, **TILED)
        forward = seen[-1][0]
        vjp(output)
        back = seen[-1][0]
        attention_statistics(*arrays[:2], **TILED)
    check_counts(seen)
    assert 1 < forward < back < seen[-1][0]


@pytest.mark.backends("torch")
def test_what_torch_records_block_by_block_is_reported(library, arrays, seen):
    arrays[0].requires_grad_()
    with into(seen):
        flash_attention(*arrays, score_mod=lambda score, *_: score * arrays[0][0, 0, 0, 0], **TILED).sum().backward()
    check_counts(seen)
    assert len(seen) == 1 + BLOCKS


@pytest.mark.backends("torch")
def test_what_torch_compiles_is_not_reported(library, arrays, seen):
    import torch  # noqa: PLC0415

    compiled = torch.compile(lambda q, k, v: flash_attention(q, k, v, **TILED), fullgraph=True, backend="eager")
    with into(seen):
        output = compiled(*arrays)
        torch.func.vmap(lambda q: flash_attention(q, q, q, **TILED))(arrays[0])
    assert seen == []
    np.testing.assert_allclose(to_numpy(output), to_numpy(flash_attention(*arrays, **TILED)), atol=1e-6)


@pytest.mark.backends("jax")
def test_programs_of_jax_report_nothing(library, arrays, seen):
    with into(seen):
        flash_attention(*arrays, **TILED)
    assert seen == []


def test_nothing_is_reported_before_and_after(seen):
    with into(seen):
        pass
    flash_attention(QUERY, KEY, VALUE, **TILED)
    assert seen == []


def test_small_calls_are_computed_at_once(seen):
    with into(seen):
        flash_attention(QUERY, KEY, VALUE)
    assert seen == []


def test_the_innermost_block_is_told(seen):
    inner = []
    with into(seen):
        with into(inner):
            flash_attention(QUERY, KEY, VALUE, **TILED)
        assert seen == []
        flash_attention(QUERY, KEY, VALUE, **TILED)
    check_counts(inner)
    check_counts(seen)


def test_other_threads_are_not_told(seen):
    with into(seen):
        other = threading.Thread(target=flash_attention, args=(QUERY, KEY, VALUE), kwargs=TILED)
        other.start()
        other.join()
    assert seen == []


def test_what_the_callable_raises_reaches_the_caller(seen):
    def stop(done, total):
        seen.append(done)
        if done == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"), progress(stop):
        flash_attention(QUERY, KEY, VALUE, **TILED)
    assert seen[:4] == [0, 1, 2, 3]
    assert len(seen) < 4 * BLOCKS
    told = len(seen)
    flash_attention(QUERY, KEY, VALUE, **TILED)
    assert len(seen) == told


def test_the_callable_may_attend(seen):
    def attend(done, total):
        flash_attention(QUERY, KEY, VALUE, **TILED)
        seen.append((done, total))

    with progress(attend):
        flash_attention(QUERY, KEY, VALUE, **TILED)
    check_counts(seen)


def test_a_call_inside_a_call_is_counted(seen):
    def inner(score, b, h, q, k):
        flash_attention(QUERY[0, 0], KEY[0, 0], VALUE[0, 0], **TILED)
        return score

    with into(seen):
        flash_attention(QUERY[:, :1], KEY[:, :1], VALUE[:, :1], score_mod=inner, **TILED)
    check_counts(seen)
    assert len(seen) > 2 * BLOCKS


@pytest.mark.parametrize("report", [3, "bar"])
def test_a_report_must_be_callable(report):
    with pytest.raises(TypeError, match="report must be callable"):
        progress(report)


@pytest.mark.parametrize("hidden", [(), ("rich",)], ids=["rich", "tqdm"])
def test_a_bar_counts_to_the_end(monkeypatch, hidden):
    pytest.importorskip("tqdm" if hidden else "rich")
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f"{name}.progress", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress():
        flash_attention(QUERY, KEY, VALUE, **TILED)
    assert "24/24" in sys.stderr.getvalue()
    assert "attention" in sys.stderr.getvalue()


def test_without_a_library_for_bars_it_says_so(monkeypatch):
    for name in ("rich", "rich.progress", "tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install rich, or give it a function"):
        progress()
