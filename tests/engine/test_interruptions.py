"""An exception that arrives between any two steps, as that of Ctrl-C does: BLAS has its threads afterwards."""

import linecache
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from attention_xp import attention_statistics, attention_vjp, flash_attention
from attention_xp._engine.threads import pool
from tests._inputs import normal
from tests.engine.test_pool import BLAS, PATIENCE, TILE, blas_threads

pytestmark = pytest.mark.skipif(
    len(BLAS) == 0,
    reason="threadpoolctl finds no BLAS whose threads it could count",
)


class Interruption(BaseException):
    """What arrives between two steps, as that of Ctrl-C does."""


class Interrupter:
    """Raises at one step of what the caller's thread does in the module of the pool: the first, the second, and so on."""

    def __init__(self, step):
        self.left = step
        self.inside = set()

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename != pool.__file__:
            return None
        self.left -= not self._leaves_a_lock(frame, event)
        if self.left < 0:
            sys.settrace(None)
            raise Interruption
        return self

    def _leaves_a_lock(self, frame, event):
        """Whether a `with` is passed for the second time: Python looks for no signal before it has let go of a lock."""
        line = frame, frame.f_lineno
        if event != "line" or not linecache.getline(pool.__file__, frame.f_lineno).strip().startswith(
            "with self._lock"
        ):
            return False
        leaves = line in self.inside
        self.inside.symmetric_difference_update({line})
        return leaves


def interrupted(call):
    """Call with an interruption at every step in turn; yield after each, while the exception is kept as users may do."""
    for step in range(10_000):
        before = sys.gettrace()
        sys.settrace(Interrupter(step))
        try:
            call()
        except Interruption as error:
            yield error
        else:
            assert step > 0
            return
        finally:
            sys.settrace(before)
    raise AssertionError("there is no end")


def gradients(x):
    """The gradients of a sum."""
    output, vjp = attention_vjp(x, x, x, impl="tiled", tile=TILE)
    return vjp(np.ones_like(output)).query


FEW_JOBS = {
    "forward": lambda x: flash_attention(x, x, x, impl="tiled", tile=TILE),
    "gradients": gradients,
    "statistics": lambda x: attention_statistics(x, x, impl="tiled", tile=TILE).entropy,
}


@pytest.mark.parametrize("function", FEW_JOBS.values(), ids=FEW_JOBS.keys())
def test_an_interruption_between_two_steps_leaves_blas_as_it_was(function):
    x, kept = normal(2, TILE[0], 8), []
    with threadpool_limits(2, user_api="blas"):
        wanted = function(x)
        for error in interrupted(lambda: function(x)):
            kept.append(error)
            assert set(blas_threads()) == {2}
        np.testing.assert_array_equal(function(x), wanted)  # and the next call works
    assert len(kept) > 20


def calls_of_a_hold(blas):
    """A call that holds BLAS once, one within another, and one while another thread comes and goes."""

    def nested():
        blas.with_one_thread(lambda _: blas.with_one_thread(lambda _: None))

    def beside_another():
        come, go = threading.Event(), threading.Event()
        other = threading.Thread(target=blas.with_one_thread, args=(lambda _: (come.set(), go.wait(PATIENCE)),))
        try:
            blas.with_one_thread(lambda _: (other.start(), come.wait(PATIENCE)))
        finally:
            if other.ident is not None:
                assert blas._libraries[0].num_threads == 1  # as long as anybody holds it
                go.set()
                other.join()

    return {"alone": lambda: blas.with_one_thread(lambda _: None), "nested": nested, "beside": beside_another}


class Counted:
    """A BLAS library as threadpoolctl shows it."""

    def __init__(self, num_threads):
        self.num_threads = num_threads

    def set_num_threads(self, count):
        self.num_threads = count


@pytest.mark.parametrize("how", ["alone", "nested", "beside"])
def test_a_hold_that_is_interrupted_is_given_back(how):
    blas, kept = pool._Blas(), []
    blas._libraries = [Counted(4), Counted(8)]
    call = calls_of_a_hold(blas)[how]
    for error in interrupted(call):
        kept.append(error)
        assert [library.num_threads for library in blas._libraries] == [4, 8]
        assert not blas._lock.locked()
    assert len(kept) > 20


def test_a_limit_that_was_changed_meanwhile_is_no_business_of_an_interrupted_call():
    blas = pool._Blas()
    blas._libraries = [library] = [Counted(4)]
    blas.with_one_thread(lambda _: None)
    library.num_threads = 2
    for _ in interrupted(lambda: blas.with_one_thread(lambda _: None)):
        assert library.num_threads == 2
