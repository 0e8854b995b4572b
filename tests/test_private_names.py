"""Names of the libraries that these do not promise to keep: what is asked of each, where there is no public question."""

import ast
import importlib

import pytest

from tests._source import modules


def torch_of(name):
    owner = importlib.import_module("torch")
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


def level_of_forward_mode(torch):
    return torch.autograd.forward_ad._current_level == -1


def level_inside_forward_mode(torch):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad._current_level == 0


def stack_of_transformations(torch):
    functorch, seen = torch._C._functorch, []
    torch.func.vmap(lambda x: seen.append(functorch.peek_interpreter_stack()) or x)(torch.zeros(2))
    return functorch.peek_interpreter_stack() is None and seen[0] is not None


def kinds_of_transformations(torch):
    functorch, seen = torch._C._functorch, []

    def look(x):
        (level,) = functorch.get_interpreter_stack()
        is_gradient = level.key() == functorch.TransformType.Grad
        before = functorch.CGradInterpreterPtr(level).prevGradMode()
        inner = functorch.get_unwrapped(x)
        seen.append((is_gradient, before, functorch.is_functorch_wrapped_tensor(x), type(inner) is torch.Tensor))
        return x.sum()

    torch.func.grad(look)(torch.ones(2))
    return seen == [(True, True, True, True)]


def mapped_tensors(torch):
    seen = []
    torch.func.vmap(lambda x: seen.append(torch._C._functorch.is_batchedtensor(x)) or x)(torch.zeros(2))
    return seen == [True] and not torch._C._functorch.is_batchedtensor(torch.zeros(2))


def watching_modes(torch):
    class Watch(importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Watch():
        inside = torch._C._len_torch_dispatch_stack()
    return inside == 1 and torch._C._len_torch_dispatch_stack() == 0


def batches_of_gradients(torch):
    """Autograd takes gradients in batches: one level deeper, of which an axis can be made and taken back."""
    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            level = torch._C._vmapmode_increment_nesting() - 1
            torch._C._vmapmode_decrement_nesting()
            batch = torch._remove_batch_dim(gradient, level, 1, 0)
            seen.append((level, tuple(batch.shape)))
            return torch._add_batch_dim(2 * batch.expand(3, 2), 0, level)

    x = torch.ones(2, requires_grad=True)
    (found,) = torch.autograd.grad(Double.apply(x), x, torch.ones(3, 2), is_grads_batched=True)
    return seen == [(1, (3, 2))] and found.tolist() == [[2.0] * 2] * 3


def arguments_of_the_kernel(torch):
    x = torch.ones(1, 1, 2, 4, requires_grad=True)
    attend, nodes = torch.nn.functional.scaled_dot_product_attention, []
    output = attend(x, x, x, is_causal=True, scale=0.5)
    node = output.grad_fn
    node.register_prehook(lambda _: nodes.append(torch._C._current_autograd_node()))
    output.sum().backward()
    kept = [hasattr(type(node), f"_saved_{name}") for name in ("query", "key", "value", "is_causal", "scale")]
    return all(kept) and (node._saved_is_causal, node._saved_scale) == (True, 0.5) and nodes[0] is not None


def hooks_of_another_tensor(torch):
    """What `Tensor.register_hook` does, with the hooks of another tensor; others may be registered afterwards."""
    x, other, seen = torch.ones(2, requires_grad=True), torch.zeros((), requires_grad=True), []
    other.register_hook(seen.append)
    outputs = [2 * x, 4 * x]
    for output in outputs:
        output.grad_fn._register_hook_dict(other)
    outputs[0].register_hook(lambda gradient: 3 * gradient)
    sum(outputs).sum().backward()
    return [gradient.tolist() for gradient in seen] == [[1.0, 1.0]] * 2 and x.grad.tolist() == [10.0, 10.0]


def the_kernel_itself(torch):
    x = torch.arange(8.0).reshape(1, 1, 2, 4)
    own, public = torch._C._nn.scaled_dot_product_attention, torch.nn.functional.scaled_dot_product_attention
    return torch.equal(own(x, x, x, is_causal=True, scale=0.5), public(x, x, x, is_causal=True, scale=0.5))


def tensors_without_storage(torch):
    """A subclass may have a shape and no numbers: operations come to it, and questions about the shape do not."""
    asked = []

    class Hollow(torch.Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            asked.append(function)
            return torch.zeros(2, 3)

    x = torch.Tensor._make_wrapper_subclass(Hollow, (2, 3), dtype=torch.bool)
    shape = tuple(x.shape), x.ndim, x.dtype, x.device.type
    return shape == ((2, 3), 2, torch.bool, "cpu") and not asked and (x + 1).sum() == 0 and len(asked) == 1


def operators_of_scripts(torch):
    """A function of Python may be announced as one of the operators of TorchScript."""

    def own(*args, **kwargs):
        """Is not called."""

    torch.jit._builtins._register_builtin(own, "aten::relu")
    return torch.jit._builtins._find_builtin(own) == "aten::relu"


def open_sizes(torch):
    known = importlib.import_module("torch.fx.experimental.symbolic_shapes").statically_known_true
    return known(2 % 2 == 0) is True and known(3 % 2 == 0) is False


def state_of_traces(jax):
    clean, seen = jax._src.core.trace_state_clean, []
    jax.make_jaxpr(lambda x: seen.append(clean()) or x)(1.0)
    return clean() and seen == [False]


def batch_tracers(jax):
    seen = []
    jax.vmap(lambda x: seen.append(type(x).__name__) or x)(jax.numpy.zeros(2))
    return seen == ["BatchTracer"]


TORCH = {
    "autograd.forward_ad._current_level": (level_of_forward_mode, level_inside_forward_mode),
    "_C._functorch": (stack_of_transformations, kinds_of_transformations, mapped_tensors),
    "_C._len_torch_dispatch_stack": (watching_modes,),
    "_C._vmapmode_increment_nesting": (batches_of_gradients,),
    "_C._vmapmode_decrement_nesting": (batches_of_gradients,),
    "_remove_batch_dim": (batches_of_gradients,),
    "_add_batch_dim": (batches_of_gradients,),
    "_C._current_autograd_node": (arguments_of_the_kernel,),
    "_register_hook_dict": (hooks_of_another_tensor,),
    "_C._nn": (the_kernel_itself,),
    "fx.experimental.symbolic_shapes": (open_sizes,),
    "jit._builtins._register_builtin": (operators_of_scripts,),
    "_C._disabled_torch_function_impl": (tensors_without_storage,),
    "Tensor._make_wrapper_subclass": (tensors_without_storage,),
}
OF_NODES = {"_saved_is_causal", "_saved_scale"}
JAX = {"_src.core.trace_state_clean": (state_of_traces, batch_tracers)}


@pytest.mark.backends("torch")
@pytest.mark.parametrize("name", TORCH)
def test_torch_has_it_still(name):
    assert all(question(importlib.import_module("torch")) for question in TORCH[name])


@pytest.mark.backends("jax")
@pytest.mark.parametrize("name", JAX)
def test_jax_has_it_still(name):
    assert all(question(importlib.import_module("jax")) for question in JAX[name])


def private_names():
    """What the package asks of objects of the libraries by a name that begins with an underscore."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = ast.unparse(node.value)
                if (
                    owner.split(".")[0].split("[")[0] in {"torch", "jax", "functorch", "node", "output"}
                    or "sys.modules[" in owner
                ):
                    yield node.attr


def test_the_list_is_whole():
    listed = {part for name in (*TORCH, *JAX) for part in name.split(".") if part.startswith("_")} | OF_NODES
    assert set(private_names()) == listed
