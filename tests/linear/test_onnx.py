"""The node cases of ONNX LinearAttention-27, with the data that the onnx package generates for them."""

import importlib
from functools import cache
from typing import Any

import numpy as np
import pytest

from attention_xp.linear import LinearState, linear_attention
from tests._assertions import tolerance
from tests._backends import to_numpy

NAMES = [
    "decode_step", "delta", "explicit_scale", "fp16", "gated", "gated_delta", "gated_delta_beta_scalar",
    "gated_delta_gqa", "gated_delta_mqa", "gated_per_head_decay", "linear", "linear_t1_no_past",
    "no_past_explicit_zeros", "prefill_with_past",
]  # fmt: skip


@cache
def node_cases() -> dict[str, Any]:
    """Import the cases of one operator: to collect those of all takes ten seconds."""
    node = pytest.importorskip("onnx.backend.test.case.node", reason="the package onnx is not installed")
    try:
        importlib.import_module("onnx.backend.test.case.node.linear_attention")
    except ModuleNotFoundError:
        return {}
    prefix = "test_linear_attention_"
    return {
        c.name.removeprefix(prefix): c
        for c in node._NodeTestCases
        if c.model.graph.node[0].op_type == "LinearAttention"
    }


def heads_first(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, S, H * D) -> (B, H, S, D)."""
    B, S, width = x.shape
    return x.reshape(B, S, heads, width // heads).swapaxes(1, 2)


def test_all_cases_are_named_here():
    if not node_cases():
        pytest.skip("this version of onnx has no LinearAttention")
    assert set(node_cases()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_node_case(library, name):
    if name not in node_cases():
        pytest.skip("this version of onnx has no LinearAttention")
    case = node_cases()[name]
    (node,) = case.model.graph.node
    onnx = pytest.importorskip("onnx")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    (values, (expected, expected_state)) = case.data_sets[0]
    if expected.dtype == np.float16 and "float16" not in library.dtypes():
        pytest.skip("the backend has no float16")
    arrays = dict(zip([i for i in node.input if i], values, strict=True))
    heads, kv_heads = attributes["q_num_heads"], attributes["kv_num_heads"]

    def make(x: np.ndarray, heads: int) -> Any:
        return library.array(heads_first(x, heads), str(x.dtype))

    given = {name: make(arrays[name], kv_heads) for name in ("key", "value", "decay") if name in arrays}
    if "beta" in arrays:
        given["beta"] = make(arrays["beta"], arrays["beta"].shape[-1])
    if "past_state" in arrays:
        given["state"] = LinearState(library.array(arrays["past_state"]))
    output, state = linear_attention(
        make(arrays["query"], heads), **given, feature_map=None, is_causal=True, scale=attributes.get("scale"),
        update_rule=attributes.get("update_rule", b"gated_delta").decode(), return_state=True,
    )  # fmt: skip
    limits = tolerance(f"numpy.{expected.dtype}")
    np.testing.assert_allclose(to_numpy(output), heads_first(expected, heads), **limits)
    np.testing.assert_allclose(to_numpy(state.memory), expected_state, **limits)
