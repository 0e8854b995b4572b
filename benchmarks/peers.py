"""The contenders of other libraries. Layouts that differ from ours are prepared beforehand, outside the clock."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.case import Case
from benchmarks.contenders import Call, contender
from benchmarks.formula import chunked_rule, usual_attention
from benchmarks.ours import as_tensors, by_autograd, compiled_bytes, differentiated, recompile, rule_inputs

__all__: list[str] = []


def _heads_last_but_one(case: Case) -> list[Any]:
    """Return the input as (B, S, H, D), contiguous."""
    return [np.ascontiguousarray(np.swapaxes(x, 1, 2)) for x in case.inputs()]


@contender("usual formula")
def _formula(case: Case) -> Call:
    return partial(usual_attention, np, *case.inputs(), is_causal=case.causal)


@contender("torch SDPA", "torch")
def _torch(case: Case, torch: Any) -> Call:
    attend = torch.nn.functional.scaled_dot_product_attention
    options = {"enable_gqa": True} if case.kv_heads else {}
    return partial(attend, *as_tensors(case, torch, case.inputs()), is_causal=case.causal, **options)


@contender("torch SDPA, gradients", "torch")
def _torch_gradients(case: Case, torch: Any) -> Call:
    attend = torch.nn.functional.scaled_dot_product_attention
    options = {"enable_gqa": True} if case.kv_heads else {}
    return by_autograd(case, torch, partial(attend, is_causal=case.causal, **options))


@contender("torch flex_attention, compiled", "torch", "torch.nn.attention.flex_attention")
def _flex(case: Case, torch: Any, flex: Any) -> Call:
    def allowed(_batch: Any, _head: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= case.window)

    S = case.shape[-2]
    mask = flex.create_block_mask(allowed, None, None, S, S, device="cpu")
    attend = torch.no_grad()(torch.compile(flex.flex_attention))
    return partial(attend, *map(torch.from_numpy, case.inputs()), block_mask=mask)


for rule in ("gated", "delta", "gated_delta"):

    @contender(f"torch loop, {rule}", "torch")
    def _torch_loop(case: Case, torch: Any, rule: str = rule) -> Call:
        arrays, options = rule_inputs(case, rule)
        tensors = {name: torch.from_numpy(x) for name, x in options.items()}
        return torch.no_grad()(partial(chunked_rule, torch, *as_tensors(case, torch, arrays), **tensors))


@contender("onnxruntime Attention", "onnxruntime", "onnx")
def _onnxruntime(case: Case, onnxruntime: Any, onnx: Any) -> Call:
    session = onnxruntime.InferenceSession(_model(case, onnx), providers=["CPUExecutionProvider"])
    return partial(session.run, None, dict(zip("QKV", case.inputs(), strict=True)))


def _model(case: Case, onnx: Any) -> bytes:
    """Return a model that consists of the operator alone."""
    value = onnx.helper.make_tensor_value_info
    shapes = {"Q": case.shape, "K": case.kv_shape, "V": case.kv_shape, "Y": case.shape}
    infos = {name: value(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    node = onnx.helper.make_node("Attention", ["Q", "K", "V"], ["Y"], is_causal=int(case.causal))
    graph = onnx.helper.make_graph([node], "attention", [infos[name] for name in "QKV"], [infos["Y"]])
    opset = onnx.helper.make_opsetid("", 23)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=11)
    return bytes(model.SerializeToString())


@contender("Keras on NumPy", "keras", environment={"KERAS_BACKEND": "numpy"})
def _keras(case: Case, keras: Any) -> Call:
    return partial(keras.ops.dot_product_attention, *_heads_last_but_one(case), is_causal=case.causal)


def _jitted(case: Case, jax: Any) -> tuple[Any, list[Any]]:
    function = jax.jit(partial(jax.nn.dot_product_attention, is_causal=case.causal))
    return function, [jax.numpy.asarray(x) for x in _heads_last_but_one(case)]


@contender("jax.nn", "jax", memory=lambda case, jax: compiled_bytes(*_jitted(case, jax)))
def _jax(case: Case, jax: Any) -> Call:
    function, arrays = _jitted(case, jax)
    return lambda: function(*arrays).block_until_ready()


@contender("jax.nn, gradients", "jax")
def _jax_gradients(case: Case, jax: Any) -> Call:
    attend = partial(jax.nn.dot_product_attention, is_causal=case.causal)
    *arrays, gradient = (jax.numpy.asarray(np.swapaxes(x, 1, 2)) for x in case.inputs_and_gradient())
    return differentiated(jax, attend, arrays, gradient)


@contender("jax.nn, compiling", "jax")
def _jax_compiling(case: Case, jax: Any) -> Call:
    return recompile(jax, *_jitted(case, jax))
