"""Derivatives that a library takes through attention, for all pairs of options."""

import importlib
import itertools

import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from tests._backends import to_numpy
from tests._inputs import inputs, normal
from tests._slopes import FLOATING, check_gradients
from tests.score_mods import bent, with_derivative
from tests.test_attention_property import survivors

SHAPES = (2, 4, 3, 2), (2, 4, 5, 2)
OUTPUT, ROWS = normal(*SHAPES[0], seed=3), normal(*SHAPES[0][:-1], seed=4)  # gradients of output and log-sum-exp
KEEP = normal(3, 5) > -0.8

FACTORS = {
    "soft cap": {"softcap": 0.8},
    "bias": {"bias": normal(4, 3, 5)},
    "boolean mask": {"mask": KEEP},
    "float mask": {"mask": normal(2, 1, 3, 5)},
    "causal": {"is_causal": True, "query_offset": 1},
    "window": {"window": (1, 2), "query_offset": 1},
    "key lengths": {"key_lengths": np.asarray([4, 2])},
    "query lengths": {"query_lengths": np.asarray([2, 3])},
    "sinks": {"sinks": normal(4)},
    "score_mod": {"score_mod": bent},
    "grouped heads": {"kv_heads": 2},
    "dropout": {"dropout_rate": 0.4, "rng": 5},
    "log-sum-exp": {"return_lse": True},
}
PAIRS = {", ".join(pair): pair for pair in itertools.combinations(FACTORS, 2)}
# As few calls as have each pair of options once together, once each without the other, and once none of both: an option
# is on in four calls, and no two are on in the same four (Kleitman and Spencer, 1973).
CALLS = [
    tuple(name for name, on in zip(FACTORS, itertools.combinations(range(1, 7), 4), strict=False) if i in on)
    for i in range(7)
]


def arguments_of(names):
    """The floating arguments of a call with some factors, and its options."""
    options = {name: x for factor in names for name, x in FACTORS[factor].items()}
    if {"boolean mask", "float mask"} <= set(names):
        options["mask"] = np.where(KEEP, options["mask"], -np.inf)
    heads = options.pop("kv_heads", 4)
    given = dict(zip(("query", "key", "value"), inputs(*SHAPES), strict=True))
    given |= {name: given[name][:, :heads] for name in ("key", "value")}
    given |= {n: options.pop(n) for n in FLOATING if n in options and options[n].dtype != bool}
    return given, options


def made(library, options, dtype=None):
    """The options with arrays and functions of the library, but for `return_lse`."""
    xp = library.namespace()
    rest = {n: library.array(x) if isinstance(x, np.ndarray) else x for n, x in options.items() if n != "return_lse"}
    return rest | ({"score_mod": rest["score_mod"](xp)} if "score_mod" in rest else {})


def results_of(library, names, how):
    """A function of the floating arguments that gives the output and, where asked for, the log-sum-exp."""
    given, options = arguments_of(names)
    rest, xp = made(library, options), library.namespace()

    def attend(*arrays):
        output, lse = flash_attention(**dict(zip(given, arrays, strict=True)), **rest, **how, return_lse=True)
        return (output, xp.where(xp.isfinite(lse), lse, 0.0)) if "return_lse" in options else output

    return attend, given


def check(library, names, gradients):
    """Compare gradients with those of the formula."""
    given, options = arguments_of(names)
    has_lse = options.pop("return_lse", False)
    if "score_mod" in options:
        options["score_mod"] = options["score_mod"](np)
    if options.pop("rng", None) is not None:
        drawing = {"dropout_rate": options["dropout_rate"], "rng": 5, "query_offset": options.get("query_offset")}
        options["keep"] = survivors([given[n] for n in ("query", "key", "value")], drawing)
    found = dict.fromkeys(FLOATING) | dict(zip(given, gradients, strict=True))
    rtol = 1e-8 if library.dtypes()[-1] == "float64" else 2e-4
    check_gradients(found, given, options, OUTPUT, rtol=rtol, grad_lse=ROWS if has_lse else None)


@pytest.mark.parametrize("names", PAIRS.values(), ids=PAIRS)
@pytest.mark.backends("torch")
def test_torch(library, impl, names):
    """By differences, and against the gradients that NumPy's walker gives."""
    autograd = importlib.import_module("torch").autograd
    attend, given = results_of(library, names, {"impl": impl, "tile": (2, 2)})
    arrays = [library.array(x, "float64").requires_grad_() for x in given.values()]
    assert autograd.gradcheck(attend, arrays, fast_mode=True)
    if "log-sum-exp" in names:
        return
    found = autograd.grad(attend(*arrays), arrays, library.array(OUTPUT, "float64"))
    _, options = arguments_of(names)
    if "score_mod" in options:
        options["score_mod"] = with_derivative(np, bent)
    expected = attention_vjp(**given, **options, impl="tiled", tile=(2, 2))[1](OUTPUT)._asdict()
    for name, gradient in zip(given, found, strict=True):
        np.testing.assert_allclose(to_numpy(gradient), expected[name], rtol=1e-11, atol=1e-12, err_msg=name)


def test_the_calls_have_all_pairs():
    for one, other in itertools.combinations(FACTORS, 2):
        assert {(one in names, other in names) for names in CALLS} == {
            (False, True),
            (True, False),
            (True, True),
            (False, False),
        }


@pytest.mark.parametrize("names", CALLS, ids=range(len(CALLS)))
@pytest.mark.backends("jax")
def test_jax(library, impl, names):
    jax = importlib.import_module("jax")
    attend, given = results_of(library, names, {"impl": impl, "tile": (2, 2)})
    dtype = library.dtypes()[-1]
    weights = [library.array(x, dtype) for x in (OUTPUT, ROWS)]

    def loss(*arrays):
        found = attend(*arrays)
        return sum(
            (w * x).sum() for w, x in zip(weights, found if isinstance(found, tuple) else (found,), strict=False)
        )

    arrays = [library.array(x, dtype) for x in given.values()]
    slopes = jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays)))))(*arrays)
    check(library, names, [to_numpy(x).astype(np.float64) for x in slopes])
