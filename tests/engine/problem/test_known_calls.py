"""A call that is known gives what the formula gives, whatever the number of keys and the offset of the last one were."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.problem import known_calls
from attention_xp._engine.problem.problem import Problem
from tests import reference
from tests._backends import to_numpy
from tests._inputs import normal

QUERY, KEY, VALUE = normal(2, 4, 6, 8), normal(2, 2, 9, 8, seed=1), normal(2, 2, 9, 5, seed=2)
PLACES = list(itertools.product((6, 9, 7), (4, 0, -3, 4, None)))
OPTIONS = [{}, {"is_causal": True}, {"window": (2, 1)}, {"softcap": 3.0, "window": 2}]


def wrong(make, options, Sk, offset):
    """By how much a call is wrong; 0 for one that is refused, as it should be."""
    some = [QUERY, KEY[:, :, :Sk], VALUE[:, :, :Sk]]
    if offset is None and Sk != 6 and options.keys() & {"is_causal", "window"}:
        with pytest.raises(ValueError, match="query_offset is required"):
            flash_attention(*map(make, some), **options)
        return 0.0
    found = to_numpy(flash_attention(*map(make, some), query_offset=offset, **options))
    return np.abs(found - reference.attention(*some, query_offset=offset, **options).output).max()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_offsets_and_lengths_alternate(make, options):
    for Sk, offset in [*PLACES, *reversed(PLACES)]:
        assert wrong(make, options, Sk, offset) < 2e-6
    if options:
        assert len(known_calls._KNOWN) <= 2  # with an offset, and without


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_threads_do_not_mix_up_what_is_known(make, options, monkeypatch):
    monkeypatch.setattr(known_calls, "_MOST", 2)  # so that what is known is forgotten all the time
    with ThreadPoolExecutor(4) as pool:
        errors = pool.map(lambda place: wrong(make, options, *place), PLACES * 20)
    assert max(errors) < 2e-6


REFUSED = {
    "value has length 8 but key has length 9": (ValueError, {}, slice(0, 8)),
    "query_offset must be an int": (TypeError, {"query_offset": True}, slice(None)),
    "query_offset must lie between": (ValueError, {"query_offset": 2**29 + 1}, slice(None)),
    "window must be None, an int or a pair": (TypeError, {"window": (True, 0), "query_offset": 1}, slice(None)),
    "is_causal must be a bool": (TypeError, {"is_causal": np.ones(2)}, slice(None)),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_known_does_not_let_others_through(make, text):
    error, options, rows = REFUSED[text]
    query, key, value = make(QUERY), make(KEY), make(VALUE)
    for known in ({}, {"query_offset": 1}, {"window": (1, 0), "query_offset": 1}):
        flash_attention(query, key, value, **known)
    with pytest.raises(error, match=text):
        flash_attention(query, key, make(VALUE[:, :, rows]), **options)


def test_answers_are_kept_for_each_number_of_keys_and_each_offset(library, make):
    if library.like("cupy"):
        pytest.skip("its kernels depend on the layout as well, and are asked each time")
    asked, answers = [], []

    def question(problem):
        asked.append((problem.Sk, problem.query_offset))
        return asked[-1]

    places = [(9, 1), (9, 1), (7, 1), (9, 2), (7, 1), (9, 1)]
    for Sk, offset in places:
        arrays = map(make, (QUERY, KEY[:, :, :Sk], VALUE[:, :, :Sk]))
        answers.append(Problem.of(*arrays, None, 0.0, {"query_offset": offset}).once(question))
    assert answers == places
    assert asked == [(9, 1), (9, 1), (7, 1), (9, 2)]  # by the first, which was not known, and by the second


@pytest.mark.backends("torch")
def test_what_is_one_call_of_torchs_kernel_goes_there_at_once(make, monkeypatch):
    import torch  # noqa: PLC0415

    arrays = [make(x) for x in (QUERY, KEY[:, :, :6], VALUE[:, :, :6])]
    arrays[2] = make(normal(2, 2, 6, 8, seed=5))
    stated, known = [], {}
    made_of = Problem._made_of.__func__
    monkeypatch.setattr(Problem, "_made_of", classmethod(lambda *given: stated.append(1) or made_of(*given)))

    def attend(*tensors, **options):
        flash_attention(*tensors, **options)
        flash_attention(*tensors, **options)
        stated.clear()
        result = flash_attention(*tensors, **options)
        known[str(options)] = not stated
        return result

    for options in ({}, {"scale": 0.3}, {"is_causal": True}, {"return_lse": True}, {"impl": "dense"}):
        result = attend(*arrays, **options)
        output = result[0] if isinstance(result, tuple) else result
        shown = {name: x for name, x in options.items() if name not in ("impl", "return_lse")}
        expected = reference.attention(*map(to_numpy, arrays), **shown).output
        np.testing.assert_allclose(to_numpy(output), expected, atol=2e-6)
    assert [name for name, is_at_once in known.items() if is_at_once] == ["{}", "{'scale': 0.3}"]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(*arrays).dtype == arrays[0].dtype
    leaves = [x.clone().requires_grad_() for x in arrays]
    once, twice = (torch.autograd.grad(attend(*leaves).square().sum(), leaves, create_graph=True) for _ in range(2))
    assert known["{}"]
    torch.testing.assert_close(once, twice)
    (second,) = torch.autograd.grad(twice[0].sum(), leaves[:1])  # by the hook that gradients have
    dense = flash_attention(*leaves, impl="dense").square().sum()
    (expected,) = torch.autograd.grad(torch.autograd.grad(dense, leaves, create_graph=True)[0].sum(), leaves[:1])
    torch.testing.assert_close(second, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.backends("torch")
def test_nothing_is_kept_of_calls_that_a_mode_observes(library):
    """The kernels that may be chosen there are not those of other calls."""
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415  # there is no public one

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    arrays = [library.array(x) for x in (QUERY, KEY, VALUE)]
    with Watch():
        assert known_calls.known_call(*arrays, None, 0.0, {}) == (None, None, None)
    assert known_calls.known_call(*arrays, None, 0.0, {})[0] is not None
