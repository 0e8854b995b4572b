"""Any subset of the options at any broadcastable shape agrees with the formula, whichever kernel computes it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from attention_xp import flash_attention, scaled_dot_product_attention
from tests import reference
from tests._assertions import assert_close
from tests._backends import Backend
from tests.strategies import Case, cases

REFUSAL = "impl='fused' cannot compute this call: "
FEWEST = 0.3  # of the calls: those that a guest that is at hand computes


def examples(library: Backend) -> int:
    """How many calls are tried: JAX compiles every new shape, and read-only arrays only tell that nothing is written."""
    share = 10 if library.like("jax") else 5 if library is Backend.NUMPY_READONLY else 1
    return settings().max_examples // share


def survivors(arrays: tuple[np.ndarray, ...], options: dict[str, Any]) -> np.ndarray:
    """Which weights dropout keeps: those of a call on NumPy that has nothing but shapes, offset and seed in common."""
    drawing = {name: options[name] for name in ("dropout_rate", "rng", "query_offset")}
    return scaled_dot_product_attention(*(0.0 * x for x in arrays), **drawing)[1] != 0.0


def check(case: Case, library: Backend, **how: Any) -> None:
    """Compare all three results of a call with the formula."""
    arrays, options = case.rounded(library)
    keep = survivors(arrays, options) if "rng" in options else None
    expected = reference.attention(*arrays, **options, keep=keep)
    made, keywords = case.inputs(library), case.keywords(library) | how
    output, weights = scaled_dot_product_attention(*made, **keywords)
    assert_close(output, expected.output, library, dtype=case.dtype)
    assert_close(weights, expected.weights, library, dtype=case.dtype)
    output, lse = flash_attention(*made, return_lse=True, **keywords)
    assert_close(output, expected.output, library, dtype=case.dtype)
    assert_close(lse, expected.lse, library, dtype="float64" if case.dtype == "float64" else "float32")


def test_options_combine(library, impl):
    @settings(max_examples=examples(library))
    @given(cases(library.dtypes()))
    def combine(case: Case) -> None:
        check(case, library, impl=impl)

    combine()


def test_the_choice_of_implementation_combines(library):
    @settings(max_examples=examples(library) // 4)
    @given(cases(library.dtypes()))
    def combine(case: Case) -> None:
        check(case, library)

    combine()


def test_a_guest_agrees_or_tells_why_it_cannot(library):
    computed, reasons = [], set()

    @settings(max_examples=examples(library))
    @given(cases(library.dtypes(), common=True))
    def agree(case: Case) -> None:
        output = case.by_guest(library)
        if isinstance(output, str):
            reasons.add(output)
            return
        arrays, options = case.rounded(library)
        assert_close(output, reference.attention(*arrays, **options).output, library, dtype=case.dtype)
        computed.append(case)

    agree()
    assert len(computed) >= FEWEST * examples(library) if library.like("torch") else reasons
    assert all(REFUSAL in reason for reason in reasons)


def test_a_guest_is_asked_about_every_option(library):
    @settings(max_examples=examples(library))
    @given(cases(library.dtypes()))
    def ask(case: Case) -> None:
        output = case.by_guest(library)
        if isinstance(output, str):
            assert REFUSAL in output
        else:
            arrays, options = case.rounded(library)
            assert_close(output, reference.attention(*arrays, **options).output, library, dtype=case.dtype)

    ask()


LONG = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": 0},
    "causal, bottom-right": {"is_causal": True, "query_offset": -3},
    "window": {"window": (70, 3), "query_offset": 2},
    "lengths": {"key_lengths": np.asarray([257, 129]), "query_lengths": np.asarray([65, 2])},
    "everything": {
        "window": (300, None),
        "query_offset": np.asarray([7, 449]),
        "softcap": 3.0,
        "sinks": np.asarray([0.5, -1.0]),
        "bias": np.linspace(-1.0, 1.0, 1025),
    },
}


@pytest.mark.parametrize("options", LONG.values(), ids=LONG)
@pytest.mark.parametrize(("rows", "keys"), [(65, 257), (129, 513), (705, 1025)])
def test_one_more_than_a_tile(library, impl, options, rows, keys):
    """Tiles of a size that is chosen, with a last one of a single row and a single key."""
    rng = np.random.default_rng(keys)
    arrays = [rng.standard_normal(shape) for shape in ((2, 2, rows, 4), (2, 1, keys, 4), (2, 1, keys, 3))]
    given_options = {name: x[:keys] if name == "bias" else x for name, x in options.items()}
    made = {name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in given_options.items()}
    output, lse = flash_attention(*map(library.array, arrays), impl=impl, return_lse=True, **made)
    expected = reference.attention(*arrays, **given_options)
    assert_close(output, expected.output, library)
    assert_close(lse, expected.lse, library)
