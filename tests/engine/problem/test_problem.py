"""A call becomes a problem: checked, aligned with the scores, frozen."""

import dataclasses
import warnings

import numpy as np
import pytest

from attention_xp._engine.kernels.choose import choose
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp.masks import CausalMask, WindowMask
from tests._assertions import dtype_name
from tests._generators import source
from tests._inputs import inputs, normal


def problem(make, shapes=((2, 4, 5, 8), (2, 2, 7, 8)), mask=None, dropout_rate=0.0, dtype=None, **options):
    """Check a call with inputs of the given shapes."""
    q, k, v = (make(x, dtype) for x in inputs(*shapes))
    return Problem.of(q, k, v, mask, dropout_rate, options)


def test_a_problem_is_frozen(make):
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem(make).scale = 1.0


def test_sizes_and_defaults(make):
    p = problem(make)
    assert (p.batch, p.heads, p.group, p.ndim) == ((2,), 4, 2, 4)
    assert p.scale == pytest.approx(8**-0.5)
    assert (p.impl, p.tile, p.seed, p.softcap, p.query_offset) == ("auto", None, None, None, None)


def test_masks_that_all_have_to_allow_are_rules_of_their_own(make):
    causal, window, either = CausalMask(), WindowMask(3, 0), CausalMask() | WindowMask(1, 2)
    p = problem(make, mask=causal & (window & either), query_offset=0)
    assert all(rule is part for rule, part in zip(p.rules, (causal, window, either), strict=True))


def test_without_heads(make):
    p = problem(make, ((2, 5, 8), (2, 7, 8)))
    assert (p.batch, p.heads, p.group) == ((2,), None, 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_computation_is_at_least_float32(library, make, dtype):
    if dtype not in library.dtypes():
        pytest.skip(f"{library.value} has no {dtype} here")
    expected = "float64" if dtype == "float64" else "float32"
    assert dtype_name(problem(make, dtype=dtype).dtype) == expected


def test_inputs_are_not_copied(make):
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8), (2, 2, 7, 8)))
    p = Problem.of(q, k, v, None, 0.0, {})
    assert p.query is q
    assert p.key is k
    assert p.value is v


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 1, 5, 7), (1, 1, 5, 7)), ((1, 2, 1, 5, 7), (2, 1, 5, 7)), ((7,), (1, 1, 1, 7))]
)
def test_addends_are_aligned_with_the_scores(make, shape, expected):
    p = problem(make, mask=make(normal(*shape)), bias=make(normal(4, 5, 7)))
    assert sorted(tuple(a.shape) for a in p.addends) == sorted([expected, (1, 4, 5, 7)])
    assert {dtype_name(a.dtype) for a in p.addends} == {"float32"}


def test_sinks_broadcast_against_rows(make):
    assert tuple(problem(make, sinks=make(normal(4))).sinks.shape) == (1, 4, 1, 1)


def test_lengths_become_int32(make):
    p = problem(make, query_offset=make([1, 2], "int16"), query_lengths=make([1, 2], "uint8"))
    assert dtype_name(p.query_offset.dtype) == dtype_name(p.query_lengths.dtype) == "int32"
    assert problem(make, query_offset=3).query_offset == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"softcap": 1.0}, True),
        ({"query_lengths": 3}, False),
        ({"is_causal": True, "query_offset": 0}, False),
    ],
)
def test_a_row_is_sure_to_attend_only_where_nothing_is_excluded(make, options, expected):
    assert problem(make, **options).never_empty is expected


def test_a_mask_may_empty_a_row(make):
    assert not problem(make, mask=make(np.ones((5, 7), bool))).never_empty


@pytest.mark.backends("numpy", "torch", "cupy")
@pytest.mark.parametrize("wrong", [{"softcap": -1.0}, {"impl": "fast"}, {"tile": (0, 1)}, {"sinks": 1}])
def test_a_refused_call_draws_no_random_number(library, make, wrong):
    rng, twin = (source(library, "generator") for _ in range(2))
    with pytest.raises((TypeError, ValueError)):
        problem(make, dropout_rate=0.5, rng=rng, **wrong)
    drawn, expected = (problem(make, dropout_rate=0.5, rng=r).seed for r in (rng, twin))
    assert [int(word) for word in drawn] == [int(word) for word in expected]


def test_what_is_known_of_a_call_is_not_what_another_needs(make):
    """Calls of one kind are checked once: whatever the checks depend on tells calls apart."""
    first = problem(make, is_causal=True, query_offset=None, shapes=((2, 4, 5, 8), (2, 2, 5, 8)))
    assert [type(rule).__name__ for rule in first.rules] == ["CausalMask"]
    plain = ((2, 4, 5, 8), (2, 2, 5, 8))
    for _ in range(2):
        again = problem(make, plain, is_causal=True)
        assert (again.batch, again.heads, again.group, again.scale) == ((2,), 4, 2, first.scale)
        assert problem(make, plain).rules == ()
        assert problem(make, plain, scale=0.5).scale == 0.5
        assert problem(make, ((2, 4, 5, 4), (2, 1, 3, 4))).group == 4
        assert tuple(problem(make, ((1, 4, 5, 8), (2, 2, 5, 8))).query.shape) == (2, 4, 5, 8)
        with pytest.raises(TypeError, match="is_causal must be a bool, got int"):
            problem(make, plain, is_causal=1)
        with pytest.raises(TypeError, match="softcap must be a real number, got bool"):
            problem(make, plain, softcap=True)
        with pytest.raises(TypeError, match="attention has no argument 'causal'"):
            problem(make, plain, causal=True)
        with pytest.raises(TypeError, match="dropout_rate"):
            problem(make, plain, dropout_rate=False)
        with pytest.raises(ValueError, match="query_offset is required"):
            problem(make, is_causal=True)
        assert problem(make, plain, softcap=1).softcap == 1.0


def test_a_known_call_has_its_own_arrays(make):
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    for query, key, value in [(q, k, v), (v, q, k)]:
        p = Problem.of(query, key, value, None, 0.0, {})
        assert p.query is query
        assert p.key is key
        assert p.value is value


@pytest.mark.backends("numpy")
def test_masked_arrays_are_refused_after_plain_ones(make):
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    Problem.of(q, k, v, None, 0.0, {})
    with pytest.raises(
        TypeError, match=r"key must be a plain array, got numpy MaskedArray: key.filled\(np.nan\) is one"
    ):
        Problem.of(q, np.ma.masked_array(k), v, None, 0.0, {})
    with pytest.raises(
        TypeError, match=r"mask must be a plain array, got numpy MaskedArray: mask.filled\(False\) is one"
    ):
        Problem.of(q, k, v, np.ma.masked_array(np.ones((5, 5), bool)), 0.0, {})


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("name", ["query", "value", "mask", "bias", "sinks"])
def test_lists_are_told_how_they_become_arrays(make, name):
    arguments = dict(zip(("query", "key", "value"), (make(x) for x in inputs((2, 4, 5, 8))), strict=True)) | {
        "mask": None
    }
    arguments[name] = arguments.get(name, [[0.0]]).tolist() if name in ("query", "value") else [[0.0]]
    options = {option: arguments.pop(option) for option in ("bias", "sinks") if option in arguments}
    with pytest.raises(
        TypeError, match=rf"{name} must be an array.*, got list: np.asarray\({name}\), torch.as_tensor\({name}\) or"
    ):
        Problem.of(*arguments.values(), 0.0, options)


def test_calls_that_are_alike_are_asked_once(library, make):
    """What no number in the arrays can change is found out at the first call; other calls, and changed ones, ask anew."""
    asked = []

    def question(problem, more):
        asked.append(more)
        return problem.scale

    calls = [problem(make, scale=scale) for scale in (0.25, 0.25, 0.25, 0.75, 0.75)]
    changed = dataclasses.replace(calls[1], scale=0.5)
    assert [p.once(question, "how") for p in calls] == [0.25, 0.25, 0.25, 0.75, 0.75]
    # By the first of each kind, which was not known yet, and by the second; kernels judge CuPy's layout, too, each time.
    times = 5 if library.like("cupy") else 4
    assert asked == ["how"] * times
    assert calls[1].once(question, "other") == 0.25
    assert asked[times:] == ["other"]
    assert changed.once(question, "how") == 0.5


@pytest.mark.backends("torch")
@pytest.mark.parametrize("mode", ["forward", "vmap", "trace"])
def test_what_is_known_is_not_asked_for_in_a_mode(make, mode):
    """There the best kernel hangs on more than the call."""
    torch = pytest.importorskip("torch")
    q, k, v = (make(x) for x in inputs((2, 4, 5, 8)))
    for _ in range(2):
        assert choose(Problem.of(q, k, v, None, 0.0, {}), Wanted()) == "fused"
    found = []

    def attend(q, k, v):
        p = Problem.of(q, k, v, None, 0.0, {})
        found.append((p.answers, p.once(choose, Wanted())))
        return q

    if mode == "forward":
        with torch.autograd.forward_ad.dual_level():
            attend(q, k, v)
    elif mode == "vmap":
        torch.func.vmap(attend)(*(torch.stack([x, x]) for x in (q, k, v)))
    else:
        with warnings.catch_warnings():  # that it is deprecated, and what of a tensor Python was told
            warnings.simplefilter("ignore")
            torch.jit.trace(attend, (q, k, v), check_trace=False)
    expected = "fused" if mode == "trace" else "dense"
    assert set(map(str, found)) == {str((None, expected))}
