"""The kernel that materialises the scores, by itself."""

import importlib
import math
import tracemalloc

import numpy as np
import pytest

from attention_xp import scaled_dot_product_attention
from attention_xp._engine.kernels.dense import attend, refusal
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from tests import reference
from tests._assertions import assert_close
from tests._inputs import inputs, normal


def test_it_gives_everything_at_once(library, make):
    q, k, v = inputs((2, 4, 5, 8), (2, 2, 7, 8))
    sinks, bias, mask = normal(4), normal(5, 7), np.arange(7) < 4
    problem = Problem.of(*(make(x) for x in (q, k, v, mask)), 0.0, {"sinks": make(sinks), "bias": make(bias)})
    result = attend(problem, Wanted(weights=True, lse=True))
    for actual, expected in zip(result, reference.attention(q, k, v, sinks=sinks, bias=bias, mask=mask), strict=True):
        assert_close(actual, expected, library)


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(weights=True), Wanted(weights=True, lse=True)])
def test_it_refuses_nothing(make, wanted):
    problem = Problem.of(*(make(x) for x in inputs((2, 4, 5, 8))), None, 0.5, {"rng": 1, "softcap": 2.0})
    assert refusal(problem, wanted) is None


def test_grouped_keys_and_values_are_not_repeated():
    """One query over many keys: a repeated key array would be larger than all that is needed."""
    q, k, v = (x.astype(np.float32) for x in inputs((1, 64, 1, 64), (1, 1, 4096, 64)))
    problem = Problem.of(q, k, v, None, 0.0, {})
    tracemalloc.start()
    attend(problem, Wanted())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    scores, repeated = 64 * 4096 * 4, 64 * k.nbytes
    assert peak < 8 * scores < repeated


@pytest.mark.backends("jax")
def test_jax_computes_the_products_of_the_formula_and_hardly_more(library):
    """Under a mask too, unless something is not finite: what is computed in a branch is not counted."""
    jax, lengths, width = importlib.import_module("jax"), 32 * 32, 64
    x = library.array(np.ones((1, 1, 32, width)))
    program = jax.make_jaxpr(lambda *qkv: scaled_dot_product_attention(*qkv, is_causal=True))(x, x, x)

    def multiplications(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                yield math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
            elif equation.primitive.name != "cond":
                for inner in equation.params.values():
                    yield from multiplications(inner.jaxpr) if hasattr(inner, "jaxpr") else ()

    assert 2 * lengths * width <= sum(multiplications(program.jaxpr)) <= 1.1 * 2 * lengths * width
