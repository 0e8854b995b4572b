"""Any subset of the options at any broadcastable shape agrees with the formula."""

from typing import Any

import numpy as np
from hypothesis import given, settings

from attention_xp import flash_attention, scaled_dot_product_attention
from tests import reference
from tests._assertions import assert_close
from tests._backends import Backend
from tests.strategies import Case, cases


def examples(library: Backend) -> int:
    """How many calls are tried: JAX compiles every new shape."""
    return 20 if library.like("jax") else 100


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
