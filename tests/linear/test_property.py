"""Any rule, with any options, at any broadcastable shape agrees with the recurrence."""

from typing import Any

import numpy as np
from hypothesis import given, settings, strategies as st

from attention_xp.linear import LinearState, linear_attention
from tests._assertions import assert_close
from tests._backends import Backend, to_numpy
from tests.linear._cases import RULES, made
from tests.linear._reference import linear


def examples(library: Backend) -> int:
    """How many calls are tried: JAX compiles every new shape."""
    return 15 if library.like("jax") else 100


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of a call."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rule = draw(st.sampled_from(list(RULES)))
    ndim = draw(st.integers(2, 5))
    batch = tuple(draw(st.sampled_from([1, 2, 2, 0])) for _ in range({2: 0, 3: 1, 4: 1, 5: 2}[ndim]))
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    S, D, Dv = draw(st.sampled_from([0, 1, 2, 5, 9])), draw(st.sampled_from([1, 4])), draw(st.sampled_from([1, 3]))

    def tensor(n: int, *end: int, whole: bool = True) -> np.ndarray:
        lead = tuple(n if whole or draw(st.booleans()) else 1 for n in batch) if 0 not in batch else batch
        return rng.standard_normal((*lead, *((n,) if ndim > 3 else ()), *end))

    key = tensor(kv_heads, S, D, whole=False)
    call = {
        "query": tensor(heads, S, D),
        "key": key / (1.0 + np.linalg.norm(key, axis=-1, keepdims=True)),
        "value": tensor(kv_heads, S, Dv, whole=False),
        "update_rule": rule.removesuffix(" by head"),
        "feature_map": draw(st.sampled_from([None, None, "elu", "relu"])),
        "normalize": draw(st.sampled_from([None, False])),
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.3, -1.0])),
    }
    rows = S if draw(st.booleans()) else min(S, 1)
    if "decay" in RULES[rule]:
        width = D if RULES[rule]["decay"] == "channel" else 1
        call["decay"] = -np.exp(2.0 * tensor(kv_heads, rows, width, whole=False))
    if "beta" in RULES[rule]:
        call["beta"] = 0.2 / (1.0 + np.exp(-tensor(kv_heads, rows, 1, whole=False)))
    if draw(st.booleans()):
        call["state"] = LinearState(
            tensor(kv_heads, D, Dv, whole=False), np.abs(tensor(kv_heads, D, whole=False)) + 0.5
        )
    return call


def test_options_combine(library):
    @settings(max_examples=examples(library))
    @given(calls(), st.integers(1, 6), st.sampled_from(["auto", "recurrent", "chunked"]))
    def combine(call: dict[str, Any], chunk_size: int, which: str) -> None:
        arrays = made(library, call)
        rounded = {name: to_numpy(x) if hasattr(x, "dtype") else x for name, x in arrays.items()}
        if "state" in arrays:
            rounded["state"] = LinearState(*map(to_numpy, arrays["state"]))
        expected = linear(**rounded)
        output, after = linear_attention(**arrays, chunk_size=chunk_size, impl=which, return_state=True)
        size = 1.0 + float(np.max(np.abs(expected.output), initial=0.0))
        assert_close(output / size, expected.output / size, library, rtol=1e-4, atol=2e-5)
        assert_close(after.memory, expected.memory, library, rtol=1e-4, atol=2e-5)

    combine()
