"""Decoding inside `jax.jit` and `torch.compile`: one program for all steps, the same numbers, and gradients."""

import importlib

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp.cache import PagedCache, RollingCache, StaticCache, append, append_and_attend, reorder
from tests._backends import to_numpy
from tests._inputs import normal

B, H, HKV, D, STEPS, WINDOW = 2, 4, 2, 4, 50, 7
QUERY, KEY, VALUE = normal(B, H, STEPS, D), normal(B, HKV, STEPS, D, seed=1), normal(B, HKV, STEPS, D, seed=2)
MAKERS = {
    "static": lambda **how: StaticCache.empty(B, HKV, 64, D, **how),
    "rolling": lambda **how: RollingCache.empty(B, HKV, WINDOW, D, **how),
    "paged": lambda **how: PagedCache.empty(B, HKV, 28, D, page_size=4, pages_per_item=16, **how),
}


def step(cache, query, key, value, counts, items):
    """One step of decoding, after items were put in order, as beams are."""
    return append_and_attend(reorder(cache, items), query, key, value, lengths=counts, is_causal=True)


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("kind", MAKERS)
def test_fifty_steps_compile_once(library, kind):
    traced = []

    def counted(*args):
        traced.append(1)
        return step(*args)

    if library.like("jax"):
        once = importlib.import_module("jax").jit(counted)
    else:
        torch = importlib.import_module("torch")
        counter = importlib.import_module("torch._dynamo.testing").CompileCounter()
        once = torch.compile(step, backend=counter, fullgraph=True)
    make, cache = library.array, MAKERS[kind](xp=library.namespace(), dtype="float32", device=library.device())
    items, starts, found = make(np.arange(B)), np.zeros(B, int), {}
    for i in range(STEPS if library.like("jax") else 12):
        counts = np.asarray([1, int(i % 3 != 1)])
        rows = [np.stack([a[b][:, starts[b] : starts[b] + 1] for b in range(B)]) for a in (QUERY, KEY, VALUE)]
        output, cache = once(cache, *map(make, rows), make(counts), items)
        for b in range(B):
            if counts[b]:
                found[b, starts[b]] = to_numpy(output)[b, :, 0]
        starts += counts
    if library.like("jax"):
        assert len(traced) == 1
    else:
        assert counter.frame_count == 1
    whole = flash_attention(QUERY, KEY, VALUE, window=(WINDOW - 1 if kind == "rolling" else None, 0))
    for (b, position), row in found.items():
        np.testing.assert_allclose(row, whole[b, :, position], atol=2e-6)


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("kind", ["static", "paged"])
def test_gradients_pass_through_a_cache(library, kind):
    how = {"xp": library.namespace(), "dtype": "float32", "device": library.device()}
    rows, counts = [a[:, :, :6] for a in (QUERY, KEY, VALUE)], np.asarray([6, 4])
    share = normal(B, H, 6, D, seed=3)

    def loss(query, key, value):
        output, _ = append_and_attend(
            MAKERS[kind](**how), query, key, value, is_causal=True, lengths=library.array(counts)
        )
        return (output * library.array(share)).sum()

    def plain(query, key, value):
        lengths = library.array(counts)
        output = flash_attention(query, key, value, is_causal=True, key_lengths=lengths, query_lengths=lengths)
        return (output * library.array(share)).sum()

    found, expected = (gradients(library, function, rows) for function in (loss, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.abs(other).max() > 0.1


def gradients(library, function, rows):
    arrays = [library.array(a) for a in rows]
    if library.like("jax"):
        jax = importlib.import_module("jax")
        return list(map(to_numpy, jax.jit(jax.grad(function, argnums=(0, 1, 2)))(*arrays)))
    leaves = [a.clone().requires_grad_(True) for a in arrays]
    function(*leaves).backward()
    return [to_numpy(a.grad) for a in leaves]


@pytest.mark.backends("torch")
@pytest.mark.parametrize("kind", ["static", "paged"])
def test_beams_of_any_number(library, kind):
    """The second number of items makes torch compile for all."""
    torch = importlib.import_module("torch")
    compiled = torch.compile(reorder, fullgraph=True, backend="eager")
    for items in ([0, 1], [1, 0, 1], [1, 1, 0, 0]):
        cache = MAKERS[kind](xp=torch, dtype="float32")
        rows = torch.ones(B, HKV, 3, D)
        cache = reorder(append(cache, rows, rows, lengths=torch.tensor([1, 3])), torch.arange(len(items)) % B)
        assert compiled(cache, torch.tensor(items)).lengths.tolist() == [[1, 3][i % B] for i in items]
