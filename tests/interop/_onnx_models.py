"""Models of one of ONNX's operators, random ones and those of its node cases, and what its reference makes of them."""

import importlib
import random
from typing import Any, NamedTuple

import numpy as np
import onnx
from ml_dtypes import bfloat16
from onnx.backend.test.case import node as node_cases
from onnx.helper import get_attribute_value, make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.reference import ReferenceEvaluator

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": bfloat16}


class Model(NamedTuple):
    """One node: its operator and version, what goes in, None where it is left out, and its attributes."""

    operator: str
    version: int
    inputs: list[Any]
    attributes: dict[str, Any]

    @property
    def schema(self):
        return onnx.defs.get_schema(self.operator, self.version)

    def run(self):
        """Return all outputs of the reference."""
        outputs = [o.name for o in self.schema.outputs]
        names = [i.name if a is not None else "" for i, a in zip(self.schema.inputs, self.inputs, strict=False)]
        feeds = {name: a for name, a in zip(names, self.inputs, strict=True) if name}
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in feeds.items()}
        graph = make_graph(
            [make_node(self.operator, names, outputs, **self.attributes)],
            "one_node",
            [make_tensor_value_info(name, kinds[name], a.shape) for name, a in feeds.items()],
            [make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        )
        model = make_model(graph, opset_imports=[make_opsetid("", self.version)], ir_version=11)
        return ReferenceEvaluator(model).run(None, feeds)

    def exact(self):
        """The same with floats of 64 bits, the reference's own rounding of 16 bits left out."""
        inputs = [a if a is None or a.dtype.kind in "bi" else a.astype(np.float64) for a in self.inputs]
        return self._replace(
            inputs=inputs, attributes={k: v for k, v in self.attributes.items() if k != "softmax_precision"}
        )


class Case(NamedTuple):
    """A node case: its model, which outputs it names, and what they are expected to be."""

    model: Model
    named: list[bool]
    expected: list[np.ndarray]


def cases():
    """Return the node cases of the three operators by name; to import those of all operators takes ten seconds."""
    np.random.seed(0)  # noqa: NPY002  # which the cases draw from
    for module in ("attention", "rotaryembedding", "linear_attention"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    operators = {"Attention", "RotaryEmbedding", "LinearAttention"}
    found = {}
    for case in node_cases._NodeTestCases:
        nodes = case.model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in operators:  # those that are expanded to others have more nodes
            continue
        (node,), ((given, expected),) = nodes, case.data_sets
        arrays = map(np.asarray, given)
        attributes = {a.name: get_attribute_value(a) for a in node.attribute}
        attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
        inputs = [next(arrays) if name else None for name in node.input]
        model = Model(node.op_type, case.model.opset_import[0].version, inputs, attributes)
        found[case.name.removeprefix("test_")] = Case(model, [bool(name) for name in node.output], expected)
    return found


def random_model(operator, seed):
    """Return a model that the reference takes, with all that the operator has."""
    draw, normal = random.Random(seed), np.random.default_rng(seed).standard_normal
    kinds = ["float32"] * 4 + ["float16", "bfloat16"] + ["float64"] * (operator == "Attention")
    dtype = DTYPES[draw.choice(kinds)]
    return {"Attention": _attention, "RotaryEmbedding": _rotary, "LinearAttention": _linear}[operator](
        draw, normal, dtype
    )


def packed(a):
    """(B, H, S, D) -> (B, S, H * D)."""
    return a.swapaxes(1, 2).reshape(a.shape[0], a.shape[2], -1)


def some(draw, **options):
    """Return some of the options, each with one of its values."""
    return {name: draw.choice(values) for name, values in options.items() if draw.random() < 0.5}


def _attention(draw, normal, dtype):
    version = draw.choice([23, 24, 25])
    B, Hkv, group, Sq, Sk, D, Dv = (draw.randint(1, most) for most in (3, 3, 3, 6, 7, 8, 8))
    H, P, V_dtype = Hkv * group, draw.randint(0, 4), draw.choice([dtype, dtype, dtype, np.float32])
    attributes = some(
        draw, is_causal=[1], scale=[0.25, 1.0, 2.25], softcap=[0.5, 2.0, 20.0], softmax_precision=[1, 10, 11, 16]
    )
    if version == 25:
        attributes |= some(draw, left_window_size=range(-1, 5), right_window_size=range(-1, 4))
    attributes["qk_matmul_output_mode"] = draw.randint(0, 3)
    cache = draw.choice(["none", "past", "past" if version == 23 else "buffer"])
    past = [None, None]
    if cache == "past":
        past = [normal((B, Hkv, P, D)).astype(dtype), normal((B, Hkv, P, Dv)).astype(V_dtype)]
    lengths = np.asarray([draw.randint(0, Sk) for _ in range(B)]) if cache == "buffer" else None
    mask = _mask(draw, normal, dtype, (B, H, Sq, Sk + P * (cache == "past")), attributes, version)
    arrays = [
        normal((B, H, Sq, D)).astype(dtype),
        normal((B, Hkv, Sk, D)).astype(dtype),
        normal((B, Hkv, Sk, Dv)).astype(V_dtype),
    ]
    if draw.random() < 0.5:
        arrays, attributes = [packed(a) for a in arrays], {**attributes, "q_num_heads": H, "kv_num_heads": Hkv}
    return Model("Attention", version, [*arrays, mask, *past, lengths][: 6 if version == 23 else 7], attributes)


def _mask(draw, normal, dtype, sizes, attributes, version):
    kind = draw.choice(["none", "bool", "float", "float"])
    if kind == "none":
        return None
    keys = sizes[-1] if version == 23 or draw.random() < 0.3 else draw.randint(1, sizes[-1])
    shape = [n if draw.random() < 0.7 else 1 for n in sizes[:-1]] + [keys]
    shape = shape[draw.randint(0, 3) :]
    is_windowed = any(n >= 0 for name, n in attributes.items() if "window" in name)
    if attributes.get("is_causal") and not is_windowed:  # the reference takes the rows of the mask for all rows there
        shape = [*shape[:-2], sizes[-2], keys]
    if kind == "bool":
        return normal(shape) < 0.5
    return np.where(normal(shape) < -0.8, -np.inf, normal(shape)).astype(dtype)


def _rotary(draw, normal, dtype):
    B, H, S, pairs = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 6), draw.randint(1, 4)
    attributes = some(draw, interleaved=[0, 1], rotary_embedding_dim=[2 * n for n in range(pairs + 1)])
    R = attributes.get("rotary_embedding_dim", 0) or 2 * pairs
    X, ids = normal((B, H, S, 2 * pairs)), None
    if draw.random() < 0.5:
        ids = np.asarray([[draw.randrange(9) for _ in range(S)] for _ in range(B)])
    angles = normal((B, S, R // 2) if ids is None else (9, R // 2))
    if draw.random() < 0.5:
        X, attributes["num_heads"] = packed(X), H
    return Model(
        "RotaryEmbedding", 23, [*(a.astype(dtype) for a in (X, np.cos(angles), np.sin(angles))), ids], attributes
    )


def _linear(draw, normal, dtype):
    B, Hkv, S, D, Dv = (draw.randint(1, most) for most in (3, 3, 9, 6, 6))
    rule = draw.choice(["linear", "gated", "delta", "gated_delta"])
    heads = {"q_num_heads": Hkv * draw.randint(1, 3), "kv_num_heads": Hkv}
    attributes = some(draw, scale=[0.0, 0.7], chunk_size=[1, 4, 16]) | heads | {"update_rule": rule}
    key = normal((B, S, Hkv, D))
    key = (key / np.linalg.norm(key, axis=-1, keepdims=True)).reshape(B, S, -1)
    decay = -abs(normal((B, S, Hkv * draw.choice([1, D])))) if "gated" in rule else None
    beta = 1 / (1 + np.exp(normal((B, S, draw.choice([1, Hkv]))))) if "delta" in rule else None
    query, value = normal((B, S, heads["q_num_heads"] * D)), normal((B, S, Hkv * Dv))
    state = None
    if draw.random() < 0.5:
        state = normal((B, Hkv, D, Dv)).astype(draw.choice([dtype, np.float32]))
    query, key, value, decay, beta = (a if a is None else a.astype(dtype) for a in (query, key, value, decay, beta))
    return Model("LinearAttention", 27, [query, key, value, state, decay, beta], attributes)
