"""A program: on some of eight devices of JAX, every strategy computes what one device does.

Called with the names of checks, and with a strategy where they are those of any.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec

from attention_xp import attention_gradients, distributed, flash_attention
from attention_xp.distributed import shard_positions
from attention_xp.distributed._jax.ranks import How, Ranks
from attention_xp.distributed._jax.ring import _Ring
from attention_xp.masks import CausalMask
from tests._backends import Backend
from tests._inputs import normal
from tests.distributed._calls import CALLS, COMBINED, COVERING, FACTORS, inputs

GRID = "ulysses_attention on two axes"
LAYOUTS = ("zigzag", "contiguous")
ALONE = [name for name in CALLS if name == "bias" or any(name in kinds for kinds in FACTORS.values())]


def make(array: Any) -> Any:
    return jnp.asarray(array)


make.xp = jnp  # type: ignore[attr-defined]


def mesh_of(n: int, batch: int = 1, heads: int = 1) -> Any:
    """A mesh whose ranks lie along one axis, or along two, of which the second exchanges heads."""
    kinds, sizes = (jax.sharding.AxisType.Auto,) * 3, (batch, n // heads, heads)
    return jax.make_mesh(sizes, ("batch", "ring", "heads"), devices=jax.devices()[: batch * n], axis_types=kinds)


class Split:
    """The options of a call as its arrays, and a function that puts them back."""

    def __init__(self, options: dict[str, Any]) -> None:
        leaves, self.tree = jax.tree.flatten(options)
        self.rest = [None if hasattr(x, "ndim") else x for x in leaves]
        self.arrays = [x for x in leaves if hasattr(x, "ndim")]
        self.moving = [jnp.issubdtype(x.dtype, jnp.floating) for x in self.arrays]

    def joined(self, arrays: list[Any]) -> dict[str, Any]:
        rest = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(rest) if x is None else x for x in self.rest])

    def with_moved(self, moved: list[Any]) -> list[Any]:
        rest = iter(moved)
        return [next(rest) if moves else x for x, moves in zip(self.arrays, self.moving, strict=True)]

    @property
    def moved(self) -> list[Any]:
        return [x for x, moves in zip(self.arrays, self.moving, strict=True) if moves]


class Case:
    """A strategy on some devices: how the arrays of the whole are cut up, and how they come together."""

    def __init__(self, strategy: str, layout: str, n: int, S: int, batch: int = 1) -> None:
        self.function = getattr(distributed, strategy.partition(" ")[0])
        self.group: Any = ("ring", "heads") if strategy == GRID else "ring"
        self.layout, self.n, self.S, self.batch = layout, n, S, batch
        self.order = np.concatenate([shard_positions(n, rank, S, layout) for rank in range(n)])
        self.is_merged = strategy == "merged_attention"
        self.mesh = mesh_of(n, batch, 2 if strategy == GRID else 1)

    @property
    def rows(self) -> Any:
        """The rows of the query that a rank's own arrays hold, those of all ranks one behind the other."""
        return slice(None) if self.is_merged else self.order

    def spec(self, shape: tuple[int, ...], *, is_query: bool = False) -> Spec:
        axes = ["batch", *[None] * (len(shape) - 1)] if len(shape) > 2 and shape[0] > 1 else [None] * len(shape)
        if len(shape) > 2 and shape[2] == self.S and not (self.is_merged and is_query):
            axes[2] = self.group
        return Spec(*axes)

    def over_devices(self, split: Split, like: list[Any]) -> Callable[..., Any]:
        def attend(query: Any, key: Any, value: Any, arrays: list[Any]) -> Any:
            options = split.joined(arrays)
            return self.function(query, key, value, **options, group=self.group, layout=self.layout, return_lse=True)

        own = [self.spec(like[0].shape, is_query=True), *(self.spec(x.shape) for x in like[1:])]
        of_options = [self.spec(x.shape, is_query=True) for x in split.arrays]
        output = own[0], Spec(*own[0][:3])
        return jax.shard_map(attend, mesh=self.mesh, in_specs=(*own, of_options), out_specs=output)

    def cut(self, x: Any, *, is_query: bool = False) -> Any:
        return x if self.is_merged and is_query else jnp.take(x, self.order, axis=2)

    def joined(self, x: Any, *, is_query: bool = False) -> Any:
        whole = x.ndim > 2 and x.shape[2] == self.S and not (self.is_merged and is_query)
        return np.take(np.asarray(x), np.argsort(self.order), axis=2) if whole else np.asarray(x)


def slopes(attend: Callable[..., Any], split: Split, arrays: list[Any], ups: list[Any]) -> tuple[Any, Any]:
    """Return output and log-sum-exp, and the gradients of a sum of both by all floating arrays."""

    def loss(inputs: list[Any], moved: list[Any]) -> Any:
        output, lse = attend(*inputs, split.with_moved(moved))
        finite = jnp.where(jnp.isfinite(lse), lse, 0.0)
        return (output * ups[0]).sum() + (finite * ups[1].astype(lse.dtype)).sum().astype(output.dtype), (output, lse)

    (_, results), found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(arrays, split.moved)
    return results, [*found[0], *found[1]]


class OfNumPy:
    """Make arrays of NumPy of those of a call."""

    xp = np

    def __call__(self, array: Any) -> Any:
        return np.asarray(array)


def on_devices(strategy: str, layout: str, name: str, n: int, batch: int = 1, dtype: Any = float, **more: Any) -> Any:
    """Return results and gradients of the devices, joined."""
    *arrays, up = (jnp.asarray(x, dtype) for x in inputs())
    case = Case(strategy, layout, n, arrays[0].shape[-2], batch)
    own = Split({"mask": None, **(CALLS | COMBINED)[name](make, case.rows), **more})
    shards = [case.cut(arrays[0], is_query=True), *map(case.cut, arrays[1:])]
    ups = [case.cut(x, is_query=True) for x in (up, jnp.asarray(lse_up(up)))]
    results, found = slopes(case.over_devices(own, arrays), own, shards, ups)
    results = [case.joined(x, is_query=True) for x in results]
    return [*results, *(case.joined(x, is_query=i not in (1, 2)) for i, x in enumerate(found))]


def lse_up(up: Any) -> Any:
    return np.cos(np.arange(up[..., 0].size, dtype=float)).reshape(up.shape[:-1])


def of_numpy(name: str, more: dict[str, Any]) -> list[Any]:
    """Return the same of one call on arrays of NumPy."""
    query, key, value, up = inputs()
    options = {**(CALLS | COMBINED)[name](OfNumPy(), slice(None)), **more}
    output, lse = flash_attention(query, key, value, **options, return_lse=True)
    grad_lse = np.where(np.isfinite(lse), lse_up(up), 0.0)
    found = attention_gradients(query, key, value, output, lse, up, **options, grad_lse=grad_lse)
    of_scale = [(query * found.query).sum() / options["scale"]] if "scale" in options else []
    of_options = [found.bias, found.mask, of_scale, found.sinks]  # by name
    return [output, lse, found.query, found.key, found.value, *jax.tree.leaves(of_options)]


def check_same(strategy: str, layout: str, name: str, n: int = 4, batch: int = 1, **more: Any) -> None:
    expected = of_numpy(name, {key: np.asarray(x) if hasattr(x, "ndim") else x for key, x in more.items()})
    for one, other in zip(on_devices(strategy, layout, name, n, batch, **more), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13, err_msg=f"{strategy} {layout} {name} {n}")


def pairs(strategy: str) -> None:
    """Every pair of options."""
    for name in COVERING:
        check_same(strategy, name.partition(",")[0], name)


def alone(strategy: str) -> None:
    """Every option that occurs in pairs, without others; where both layouts are computed alike, a few of them in the second."""
    for name in ALONE:
        check_same(strategy, "zigzag", name)
    few = ("window", "bias")
    is_ring = strategy in ("ring_attention", GRID)
    for name in ("causal", "segments", "lengths", "dropout", *few) if is_ring else few:
        check_same(strategy, "contiguous", name)


def others(strategy: str) -> None:
    """Options that do not occur in pairs, and those that change how a ring goes in both layouts."""
    for name in (name for name in CALLS if name not in ALONE):
        check_same(strategy, "zigzag", name)
    for name in ("causal window", "all"):
        check_same(strategy, "contiguous", name)


def further(strategy: str) -> None:
    """Two and eight devices, a mesh with a batch axis, tiles, scales that are arrays, and windows with dropout."""
    for n in (2, 8) if strategy == "ring_attention" else (2,):
        check_same(strategy, "zigzag", "all", n)
    check_same(strategy, "zigzag", "bias", 2, batch=2, scale=jnp.asarray(0.3))
    check_same(strategy, "contiguous", "alibi", 4, impl="tiled", tile=(2, 3))
    n = 4 if strategy == "ulysses_attention" else 8  # heads are four
    check_same(strategy, "contiguous", "window", n, dropout_rate=0.4, rng=3, sinks=jnp.ones(4))


def narrow(strategy: str) -> None:
    """The errors of 16-bit arrays are at most twice those of one call."""
    for layout, name in (("zigzag", "causal"), ("contiguous", "window")):
        found = on_devices(strategy, layout, name, 4, dtype=jnp.bfloat16)
        alone = on_devices("gathered_attention", "contiguous", name, 1, dtype=jnp.bfloat16)
        for one, other, right in zip(found, alone, of_numpy(name, {}), strict=True):
            assert one.dtype == other.dtype
            error, most = (np.abs(np.asarray(x, float) - right).max() for x in (one, other))
            assert error <= 2.0 * most, (strategy, layout, name, error, most)


def drawn(strategy: str) -> None:
    """The same weights are dropped: the values are the rows of a unit matrix, so that the output is the weights."""
    query, key, _, _ = map(jnp.asarray, inputs())
    S = query.shape[-2]
    value = jnp.broadcast_to(jnp.eye(S), (*key.shape[:2], S, S))
    split = Split({"dropout_rate": 0.5, "rng": 5})
    expected = flash_attention(query, key, value, dropout_rate=0.5, rng=5)
    for layout in LAYOUTS:
        case = Case(strategy, layout, 4, S)
        attend = jax.jit(case.over_devices(split, [query, key, value]))
        output, _ = attend(case.cut(query, is_query=True), case.cut(key), case.cut(value), [])
        np.testing.assert_array_equal(case.joined(output, is_query=True) != 0.0, np.asarray(expected) != 0.0)


def twice(strategy: str) -> None:
    """Gradients of a sum of squares of gradients."""
    for layout, name in (("zigzag", "all"), ("contiguous", "bias")):
        *arrays, up = (jnp.asarray(x) for x in inputs())
        case = Case(strategy, layout, 4, up.shape[-2])
        own, alone = (Split({"mask": None, **CALLS[name](make, rows)}) for rows in (case.rows, slice(None)))
        shards = [case.cut(arrays[0], is_query=True), *map(case.cut, arrays[1:])]
        found = second_slopes(case.over_devices(own, arrays), own, shards, case.cut(up, is_query=True))
        expected = second_slopes(
            lambda *x, split=alone: (flash_attention(*x[:3], **split.joined(x[3])),), alone, arrays, up
        )
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_allclose(case.joined(one, is_query=i not in (1, 2)), other, rtol=1e-11, atol=1e-11)


def second_slopes(attend: Callable[..., Any], split: Split, arrays: list[Any], up: Any) -> list[Any]:
    def loss(arrays: list[Any], moved: list[Any]) -> Any:
        return jnp.sum(jnp.sin(attend(*arrays, split.with_moved(moved))[0]) * up)

    def square(*given: Any) -> Any:
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(loss, (0, 1))(*given)))

    return jax.tree.leaves(jax.jit(jax.grad(square, (0, 1)))(arrays, split.moved))


def compiled(strategy: str, layout: str, n: int, S: int, **options: Any) -> Any:
    """Return the program of a call and its gradients on n devices, in float32."""
    case, split = Case(strategy, layout, n, S), Split(options)
    arrays = [jax.ShapeDtypeStruct((1, 4, S, 32), jnp.float32)] * 3
    attend = case.over_devices(split, arrays)

    def loss(*inputs: Any) -> Any:
        return jnp.sum(attend(*inputs, split.arrays)[0])

    specs = [jax.sharding.NamedSharding(case.mesh, case.spec(x.shape)) for x in arrays]
    with_gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), in_shardings=specs)
    return with_gradients.lower(*arrays).compile()


def sent(program: Any) -> list[int]:
    """Return how many numbers each collective of a program sends to another device."""
    shapes = re.findall(r"= f32\[([\d,]+)\]\S* collective-permute(?:-start)?\(", program.as_text())
    return [int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes]


def cost() -> None:
    """The ring is a loop, holds few shards, and sends along windows what they reach."""
    programs = [compiled("ring_attention", "zigzag", n, 256 * n, is_causal=True) for n in (4, 8)]
    assert [len(sent(program)) for program in programs] == [8, 8]  # forward, backward, and gradients home
    local = 3 * 4 * 4 * 256 * 32
    temporary = [program.memory_analysis().temp_size_in_bytes for program in programs]
    assert max(temporary) <= 8 * local, [x / local for x in temporary]
    window = compiled("ring_attention", "contiguous", 4, 1024, window=(100, 0))
    assert sent(window) == [4 * 100 * 32] * 4  # keys and values, and their gradients
    window = compiled("ring_attention", "contiguous", 8, 512, window=(100, 20))
    assert sorted(sent(window)) == sorted([4 * rows * 32 for rows in (64, 36, 20)] * 4)


def work() -> None:
    """Under a causal mask, all devices compute the same number of blocks."""
    n, S = 4, 64
    mesh = mesh_of(n)
    for layout, expected in (("zigzag", [2 * n + 1] * n), ("contiguous", [1, 2, 3, 4])):

        def count(x: Any, layout: str = layout) -> Any:
            ranks = Ranks.of(x, x, None, {}, How("ring", layout, False, None))
            call = ranks.call(CausalMask(), 0.0, {})
            ring = _Ring(ranks, 0.0, call, x)

            def visit(source: Any, sent: Any, collected: Any, blocks: Any) -> Any:
                return collected, ring._each_block(call, source, lambda rows, keys, blocks: blocks + 1, blocks)

            start = jax.lax.pcast(jnp.zeros(1, jnp.int32), "ring", to="varying")
            return ring._round(visit, (), (), start)[1]

        found = jax.jit(jax.shard_map(count, mesh=mesh, in_specs=Spec("ring"), out_specs=Spec("ring")))(
            jnp.zeros((S, 4))
        )
        assert found.tolist() == expected


def refused() -> None:
    """Calls that cannot be computed say why."""
    x = jnp.asarray(normal(1, 4, 16, 8))
    mesh = mesh_of(4)

    def attend(strategy: str = "ring_attention", group: Any = "ring", x: Any = x, **options: Any) -> Any:
        def call(x: Any) -> Any:
            return getattr(distributed, strategy)(x, x, x, group=group, **options)

        spec = Spec(None, None, "ring")
        return jax.jit(jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec))(x)

    with pytest.raises(ValueError, match=r"group must be the name of an axis of the mesh inside jax\.shard_map"):
        distributed.ring_attention(x, x, x, group="ring")
    with pytest.raises(ValueError, match=r"group must be.*'sequence', which is none here"):
        attend(group="sequence")
    with pytest.raises(TypeError, match="group must be the name of an axis"):
        attend(group=3)
    for pair in (("ring",), ("ring", "ring"), ("ring", "heads", "batch")):
        with pytest.raises(ValueError, match=r"the name of one axis or of two, \(ring, heads\), got"):
            attend("ulysses_attention", group=pair)
    with pytest.raises(TypeError, match="group must be the name of an axis of the mesh, got tuple"):
        attend(group=("ring", "heads"))
    with pytest.raises(ValueError, match="timeout is for torch"):
        attend(timeout=1.0)
    with pytest.raises(ValueError, match="not divisible into 8 equal stretches"):
        attend(x=x[:, :, :12])
    for name in ("mask", "bias"):
        with pytest.raises(ValueError, match=rf"{name} must hold the rows of this rank and all keys.*\(..., 4, 16\)"):
            attend(**{name: jnp.ones((4, 4))})
    with pytest.raises(ValueError, match="key_positions must hold those of all keys: expected 16"):
        attend(key_positions=jnp.arange(4))
    with pytest.raises(ValueError, match="rng must be an int seed or a JAX key"):
        attend(dropout_rate=0.5)
    with pytest.raises(ValueError, match="number of heads must be divisible by that of ranks, 4"):
        attend("ulysses_attention", x=x[:, :3])


def captured() -> None:
    """A function of the scores may capture an array of the program; a ring refuses to differentiate by it."""
    x, factor = jnp.asarray(inputs()[0]), jnp.asarray(0.7)

    def slopes(function: Any, strategy: Any = None, **options: Any) -> Any:
        def attend(x: Any, factor: Any) -> Any:
            group = {} if strategy is None else {"group": "ring", "layout": "contiguous"}
            if strategy is not None:
                factor = jax.lax.pcast(factor, "ring", to="varying")
            return function(x, x, x, score_mod=lambda score, *_: factor * score, **group, **options)

        def loss(x: Any, factor: Any) -> Any:
            spec = Spec(None, None, "ring")
            spread = jax.shard_map(attend, mesh=mesh_of(4), in_specs=(spec, Spec()), out_specs=spec)
            return (attend if strategy is None else spread)(x, factor).sum()

        return loss

    by_x, by_factor = jax.grad(slopes(flash_attention), (0, 1))(x, factor)
    for options in ({"impl": "dense"}, {"impl": "tiled", "tile": (2, 3)}):
        ring = slopes(distributed.ring_attention, "ring", **options)
        np.testing.assert_allclose(jax.jit(jax.grad(ring))(x, factor), by_x, rtol=1e-13, atol=1e-13)
        with pytest.raises(ValueError, match="ring_attention has no gradients by arrays that functions capture"):
            jax.jit(jax.grad(ring, 1))(x, factor)
    gathered = slopes(distributed.gathered_attention, "gathered")
    np.testing.assert_allclose(jax.jit(jax.grad(gathered, 1))(x, factor), by_factor, rtol=1e-13, atol=1e-13)


if __name__ == "__main__":
    Backend.JAX.namespace()  # configured for tests
    for check in sys.argv[1].split(","):
        globals()[check](*sys.argv[2:])
