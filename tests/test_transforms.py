"""Compiling and mapping: every numerical function inside the transformations of torch."""

import importlib

import numpy as np
import pytest

import attention_xp as ax
from tests._public_calls import CALLS, FUSED, QKV, is_rare
from tests._quick import some_rare
from tests._transforms import assert_same, mapped, one_by_one

EVERYTHING = CALLS | FUSED
calls = pytest.mark.parametrize(("function", "arguments"), EVERYTHING.values(), ids=EVERYTHING)


@pytest.mark.backends("torch")
@pytest.mark.parametrize(("function", "arguments"), some_rare(EVERYTHING, is_rare))
def test_torch_compile(library, function, arguments):
    torch, made = importlib.import_module("torch"), [library.array(x) for x in arguments]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert_same(compiled(*made), function(*made))


@pytest.mark.backends("torch")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's kernel, mapped
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")  # mapped numbers lie apart; it copies them
@calls
def test_torch_vmap(library, function, arguments):
    vmap, stacked = importlib.import_module("torch").func.vmap, mapped(library, arguments)
    assert_same(vmap(function)(*stacked), one_by_one(function, stacked))


@pytest.mark.backends("torch")
def test_gradients_inside_vmap(library):
    func, stacked = importlib.import_module("torch").func, mapped(library, QKV)

    def loss(q, k, v):
        return (ax.flash_attention(q, k, v, is_causal=True, query_offset=2) ** 2).sum()

    grad = func.grad(loss, argnums=(0, 1, 2))
    assert_same(func.vmap(grad)(*stacked), one_by_one(grad, stacked))


@pytest.mark.backends("torch")
def test_gradients_of_a_compiled_function(library):
    torch = importlib.import_module("torch")
    compiled = torch.compile(ax.flash_attention, fullgraph=True, backend="eager")

    def slopes(function):
        made = [library.array(x).requires_grad_() for x in QKV]
        return torch.autograd.grad((function(*made) ** 2).sum(), made)

    assert_same(slopes(compiled), slopes(ax.flash_attention))


@pytest.mark.backends("torch")
@pytest.mark.parametrize("name", ["positional_encoding", "create_causal_mask", "alibi_slopes"])
def test_creation_inside_torch_compile(library, name):
    torch, sizes = importlib.import_module("torch"), (5, 8) if name == "positional_encoding" else (5,)

    def create(x):
        return x + getattr(ax, name)(*sizes, xp=torch, dtype=torch.float32, device=x.device)

    x = library.array(np.zeros(()))
    assert_same(torch.compile(create, fullgraph=True, backend="eager")(x), create(x))
