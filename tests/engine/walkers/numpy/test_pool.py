"""NumPy's threads: safe from everywhere, gone when BLAS may use but one, and BLAS is left as it was found."""

import linecache
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from attention_xp import attention_statistics, attention_vjp, flash_attention
from attention_xp._engine.walkers.numpy import pool
from tests import reference
from tests._inputs import inputs, normal

ROOT = Path(__file__).parents[4]
SHAPE = (2, 4, 64, 8)
TILE = (16, 16)  # 32 jobs
PATIENCE = 30.0  # seconds that threads wait for each other at most

# Of the libraries loaded by now: another package may bring one of its own later, which NumPy does not use.
BLAS = {library["filepath"] for library in threadpool_info() if library["user_api"] == "blas"}

pytestmark = pytest.mark.skipif(
    len(BLAS) == 0,
    reason="threadpoolctl finds no BLAS whose threads it could count",
)


def attend(seed, **options):
    """Attention on numbers of their own for every seed, tile by tile."""
    arrays = [x + 0.1 * seed for x in inputs(SHAPE)]
    return flash_attention(*arrays, is_causal=True, impl="tiled", tile=TILE, **options)


def blas_threads():
    """How many threads each BLAS may use now."""
    return [library["num_threads"] for library in threadpool_info() if library["filepath"] in BLAS]


class Crowd:
    """A score_mod that notes which threads call it, and has each wait until so many have come."""

    def __init__(self, expected=1):
        self.threads = set()
        self.meeting = threading.Barrier(expected)
        self.limits = []

    def __call__(self, score, b, h, q_idx, kv_idx):
        if threading.get_ident() not in self.threads:
            self.threads.add(threading.get_ident())
            self.limits += blas_threads()
            self.meeting.wait(PATIENCE)
        return score


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_as_many_threads_as_blas_may_use(allowed):
    crowd = Crowd(allowed)
    with threadpool_limits(allowed, user_api="blas"):
        attend(0, score_mod=crowd)
        assert set(blas_threads()) == {allowed}
    assert len(crowd.threads) == allowed
    assert threading.get_ident() in crowd.threads
    assert set(crowd.limits) == {1}  # BLAS itself has one thread meanwhile


def test_one_thread_starts_none(monkeypatch):
    def refuse(*_):
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    with threadpool_limits(1, user_api="blas"):
        attend(0)
    with threadpool_limits(2, user_api="blas"), pytest.raises(AssertionError, match="a thread was asked for"):
        attend(0)


class ModError(Exception):
    """What a score_mod of the tests raises."""


@pytest.mark.parametrize("where", ["helper", "caller"])
def test_an_exception_reaches_the_caller_and_blas_is_restored(where):
    meeting = threading.Barrier(2)
    seen = set()
    caller = threading.get_ident()

    def fail(score, *_):
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            meeting.wait(PATIENCE)
        if (threading.get_ident() == caller) == (where == "caller"):
            raise ModError(where)
        return score

    before = blas_threads()
    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(ModError, match=where):
            attend(0, score_mod=fail)
        assert set(blas_threads()) == {2}
        np.testing.assert_allclose(attend(0), expected(0), rtol=1e-10, atol=1e-12)  # and the next call works
    assert blas_threads() == before


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


def test_what_the_caller_has_set_for_numpy_holds_on_every_thread():
    meeting, seen = threading.Barrier(2), {}

    def look(score, *_):
        if threading.get_ident() not in seen:
            seen[threading.get_ident()] = np.geterr()["divide"]
            meeting.wait(PATIENCE)
        return score

    for setting in ("raise", "ignore"):
        seen.clear()
        with threadpool_limits(2, user_api="blas"), np.errstate(divide=setting):
            attend(0, score_mod=look)
        assert list(seen.values()) == [setting] * 2


def expected(seed):
    """What the formula gives."""
    return reference.attention(*(x + 0.1 * seed for x in inputs(SHAPE)), is_causal=True).output


def awkward(x):
    """The same numbers, read-only and in no order that a product likes."""
    x = np.ascontiguousarray(x[..., ::-1].swapaxes(-1, -3)).swapaxes(-1, -3)[..., ::-1]
    x.flags.writeable = False
    return x


def slopes(seed, impl="tiled"):
    """Output and gradients, from arrays as awkward as they come."""
    arrays = [awkward(x + 0.1 * seed) for x in inputs(SHAPE)]
    bias, gradient = (awkward(normal(*SHAPE[:-1], n, seed=seed)) for n in (SHAPE[-2], SHAPE[-1]))
    output, vjp = attention_vjp(*arrays, bias=bias, is_causal=True, softcap=2.0, impl=impl, tile=TILE)
    return output, *(x for x in vjp(gradient) if x is not None)


def check_attention(seed, output):
    """Compare with the formula."""
    np.testing.assert_allclose(output, expected(seed), rtol=1e-10, atol=1e-12)


def check_slopes(seed, found):
    """Compare with one tile of all scores, which needs no thread."""
    for actual, wanted in zip(found, slopes(seed, impl="dense"), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "check"), [(attend, check_attention), (slopes, check_slopes)], ids=["forward", "gradients"]
)
def test_several_threads_of_the_user_at_once(function, check):
    count = 6
    together = threading.Barrier(count)

    def call(seed):
        together.wait(PATIENCE)
        return [function(seed) for _ in range(5)]

    before = blas_threads()
    with threadpool_limits(3, user_api="blas"), ThreadPoolExecutor(count) as threads:
        results = list(threads.map(call, range(count)))
        assert set(blas_threads()) == {3}
    assert blas_threads() == before
    for seed, found in enumerate(results):
        for one in found:
            check(seed, one)


def test_one_vjp_in_several_threads_at_once():
    arrays = [awkward(x) for x in inputs(SHAPE)]
    output, vjp = attention_vjp(*arrays, is_causal=True, impl="tiled", tile=TILE)
    gradients = [awkward(normal(*output.shape, seed=seed)) for seed in range(6)]
    wanted = [vjp(gradient) for gradient in gradients]
    with threadpool_limits(2, user_api="blas"), ThreadPoolExecutor(len(gradients)) as threads:
        found = list(threads.map(vjp, gradients))
    for some, others in zip(found, wanted, strict=True):
        for actual, expected in zip(some[:3], others[:3], strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_blas_is_held_from_any_thread_whoever_set_a_number_first():
    seen, before = [], blas_threads()

    def look(score, *_):
        seen.extend(blas_threads())
        return score

    with threadpool_limits(2, user_api="blas"), ThreadPoolExecutor(1) as other:
        np.testing.assert_allclose(
            other.submit(attend, 0, score_mod=look).result(), expected(0), rtol=1e-10, atol=1e-12
        )
        assert set(seen) == {1}
        assert set(blas_threads()) == {2}
    assert blas_threads() == before  # the limits of the main thread count again


def test_attention_inside_attention():
    inner = []

    def nested(score, *_):
        inner.append(attend(1))
        return score

    with threadpool_limits(2, user_api="blas"):
        np.testing.assert_allclose(attend(0, score_mod=nested), expected(0), rtol=1e-10, atol=1e-12)
        assert set(blas_threads()) == {2}
    for output in inner:
        np.testing.assert_allclose(output, expected(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_inside_workers_of_joblib(backend):
    joblib = pytest.importorskip("joblib")
    before = blas_threads()
    attend(0)  # the pool of this process exists
    with joblib.parallel_config(backend, n_jobs=2):
        results = joblib.Parallel()(joblib.delayed(attend)(seed) for seed in range(6))
    for seed, output in enumerate(results):
        np.testing.assert_allclose(output, expected(seed), rtol=1e-10, atol=1e-12)
    assert blas_threads() == before


FORK = """
import os, sys, threading
import numpy as np
from threadpoolctl import threadpool_limits
from tests.engine.walkers.numpy.test_pool import Crowd, attend, blas_threads, check_slopes, expected, slopes

def answer():
    crowd = Crowd(2)
    np.testing.assert_allclose(attend(3, score_mod=crowd), expected(3), rtol=1e-10, atol=1e-12)
    assert len(crowd.threads) == 2, crowd.threads
    check_slopes(3, slopes(3))
    assert set(blas_threads()) == {2}, blas_threads()

with threadpool_limits(2, user_api="blas"):
    answer()
    inside, leave = threading.Event(), threading.Event()
    def linger(score, *_):
        inside.set(), leave.wait(30)
        return score
    busy = threading.Thread(target=attend, args=(0,), kwargs={"score_mod": linger}) if MEANWHILE else None
    if busy:
        busy.start(), inside.wait(30)
    child = os.fork()
    if child == 0:
        try:
            answer()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    leave.set()
    if busy:
        busy.join()
    answer()
    sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("meanwhile", [False, True], ids=["idle", "while another thread attends"])
def test_a_forked_child_has_threads_of_its_own(meanwhile):
    script = FORK.replace("MEANWHILE", str(meanwhile))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, timeout=90
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("libraries", "expected"),
    [
        ([], False),
        ([("openblas", "SkylakeX")], True),
        ([("openblas", "SkylakeX"), ("openblas", "Cooperlake")], True),
        ([("openblas", "Haswell")], False),
        ([("openblas", "SkylakeX"), ("mkl", None)], False),
    ],
)
def test_small_kernels_are_those_of_one_library(libraries, expected):
    blas = pool._Blas()
    blas._libraries = [SimpleNamespace(internal_api=api, architecture=name) for api, name in libraries]
    assert blas.has_small_kernels() is expected
