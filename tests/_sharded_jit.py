"""A program: under plain `jit` on eight devices, calls on sharded arrays are those on one device, and stay sharded."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import attention_xp as ax
from attention_xp import biases, linear, masks
from tests._inputs import normal

MESH = {"batch": 2, "heads": 4}
AXES = {"b": "batch", "h": "heads", ".": None}
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
TILED = {"impl": "tiled", "tile": (8, 8)}
WHOLE = normal(4, 8, 16, 8), normal(4, 4, 16, 8), normal(4, 4, 16, 8, seed=1)  # two query heads share a key/value head


def mesh(kind):
    """Eight devices, for batch items and heads."""
    return jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(kind,) * 2)


def spread(arrays, letters, kind):
    """Arrays whose axes are shared out by letters: b over batch, h over heads, "." over none."""
    specs = [
        PartitionSpec(*(AXES[letter] for letter in some[: x.ndim]))
        for x, some in zip(arrays, letters.split(), strict=True)
    ]
    return [jax.device_put(x, NamedSharding(mesh(kind), spec)) for x, spec in zip(arrays, specs, strict=True)]


def with_slopes(function):
    """The function, with the gradients that its results have where each is weighted by its own cosine."""

    def both(*arrays):
        moving = [i for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]

        def moved(*some):
            given = dict(zip(moving, some, strict=True))
            return function(*(given.get(i, x) for i, x in enumerate(arrays)))

        found, pull = jax.vjp(moved, *(arrays[i] for i in moving))
        return found, pull(jax.tree.map(jnp.cos, found))

    return both


def check(name, function, arrays, letters, kind, expected=()):
    """Compare eight devices with one; what has batch items and heads is shared out, and collectives are those expected."""
    given = spread(arrays, letters, kind)
    with jax.set_mesh(mesh(kind)):
        compiled = jax.jit(function).lower(*given).compile()
        found = jax.tree.leaves(compiled(*given))
    for one, other in zip(found, jax.tree.leaves(jax.jit(function)(*arrays)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13, err_msg=name)
        if one.ndim > 2 and one.shape[:1] == WHOLE[0].shape[:1] and letters.startswith("bh"):
            assert one.sharding.spec[:2] == ("batch", "heads"), (name, one.sharding)
    assert set(COLLECTIVE.findall(compiled.as_text())) == set(expected), (name, COLLECTIVE.findall(compiled.as_text()))
    return compiled


def check_memory():
    """What a device holds is an eighth of the whole, but for the buffers of a tile."""
    long = normal(4, 8, 256, 8), normal(4, 4, 256, 8), normal(4, 4, 256, 8, seed=1)
    attend = with_slopes(partial(ax.flash_attention, is_causal=True, **TILED))

    def held(arrays):
        found = jax.jit(attend).lower(*arrays).compile().memory_analysis()
        return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes

    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(mesh(kind)):
            of_device = held(spread(long, "bh bh bh", kind))
        assert of_device <= 1.2 * held(long) / 8, (kind, of_device, held(long))


KEEP = normal(4, 1, 16, 16) > -0.5
LENGTHS = np.asarray([3, 16, 9, 12])
SEGMENTS = np.sort(np.abs(normal(4, 16) * 2).astype(np.int64), axis=-1)
OPTIONS = {  # each with its arrays and their letters
    "mask": (lambda x: {"mask": x}, (KEEP,), "b"),
    "float mask": (lambda x: {"mask": x}, (np.where(KEEP, 0.5, -np.inf),), "b"),
    "bias of all": (lambda x: {"bias": x}, (normal(4, 8, 16, 16),), "bh"),
    "bias of heads": (lambda x: {"bias": x}, (normal(8, 16, 16),), "h"),
    "sinks": (lambda x: {"sinks": x}, (normal(8),), "h"),
    "lengths": (lambda x, y: {"query_lengths": x, "key_lengths": y}, (LENGTHS, LENGTHS[::-1].copy()), "b b"),
    "offset": (lambda x: {"query_offset": x, "window": (5, 2)}, (LENGTHS - 3,), "b"),
    "positions": (lambda x: {"key_positions": x, "is_causal": True, "query_offset": 3}, (SEGMENTS * 5,), "b"),
    "scale": (lambda x: {"scale": x}, (np.asarray(0.3),), "."),
    "segments": (lambda x: {"mask": masks.SegmentMask(x) | masks.PrefixMask(x[:, 0])}, (SEGMENTS,), "b"),
    "blocks": (lambda x: {"mask": ~masks.BlockMask(x, 4)}, (normal(8, 4, 4) > 0.5,), "h"),
    "slopes": (lambda x: {"bias": biases.AlibiBias(x)}, (normal(4, 8),), "bh"),
    "buckets": (lambda x: {"bias": biases.RelativePositionBias(x, max_distance=9)}, (normal(8, 8),), ".h"),
    "dropout": (lambda: {"dropout_rate": 0.3, "rng": 5}, (), ""),
    "ids": (lambda x, y: {"dropout_rate": 0.3, "rng": 5, "item_ids": x, "head_ids": y}, (LENGTHS, np.arange(8)[::-1].copy()), "b h"),
    "score_mod": (lambda: {"score_mod": lambda s, b, h, i, j: s * (1.0 + 0.1 * b) - 0.1 * h * (i > j)}, (), ""),
    "rule": (lambda: {"mask": masks.FunctionMask(lambda b, h, i, j: (b + h + i + j) % 3 > 0)}, (), ""),
}  # fmt: skip
TOGETHER = ("bias of heads", "sinks", "lengths", "offset", "scale", "dropout", "score_mod", "segments")


def made_of(names, arrays):
    """The options of these names, from their arrays."""
    rest, found = iter(arrays), {}
    for name in names:
        make, given, _ = OPTIONS[name]
        found |= make(*(next(rest) for _ in given))
    return found


def arguments(names):
    """The arrays of a call with options of these names, and their letters."""
    arrays = [*WHOLE, *(x for name in names for x in OPTIONS[name][1])]
    return arrays, " ".join(["bh bh bh", *(OPTIONS[name][2] for name in names)])


def alone(q, k, v, *arrays):
    """Calls with one option each."""
    rest = iter(arrays)
    options = [made_of([name], [next(rest) for _ in OPTIONS[name][1]]) for name in OPTIONS]
    return [ax.flash_attention(q, k, v, **some, **TILED) for some in options]


def together(q, k, v, *arrays, **how):
    """A call with many options at once."""
    return ax.flash_attention(q, k, v, **made_of(TOGETHER, arrays), softcap=3.0, return_lse=True, **how)


def gated(q, k, v, decay, beta):
    """Linear attention with everything that a rule may have."""
    return linear.linear_attention(
        q, k, v, update_rule="gated_delta", decay=decay, beta=beta, feature_map=None, chunk_size=4
    )


def check_calls():
    """Every kind of call, on both kinds of mesh."""
    causal = partial(ax.flash_attention, is_causal=True)
    for kind in (AxisType.Auto, AxisType.Explicit):
        check("tiled", with_slopes(partial(causal, **TILED)), WHOLE, "bh bh bh", kind)
        check("dense", with_slopes(partial(causal, impl="dense")), WHOLE, "bh bh bh", kind)
        # The gradients of sinks, of a scale and of a bias for all batch items are sums over devices.
        check("together", with_slopes(partial(together, **TILED)), *arguments(TOGETHER), kind, ["all-reduce"])
        statistics = partial(ax.attention_statistics, is_causal=True, **TILED)
        check("statistics", statistics, WHOLE[:2], "bh bh", kind)
        gates = -np.abs(normal(4, 4, 16, 8)), normal(4, 4, 16, 1) ** 2 / 9.0
        check("linear", with_slopes(gated), (*WHOLE, *gates), "bh bh bh bh bh", kind)
    check("alone", alone, *arguments(OPTIONS), AxisType.Auto)


def check_rows():
    """Rows may stay shared out; keys are gathered."""

    def attend(q, k, v, lengths):
        return ax.flash_attention(q, k, v, is_causal=True, query_lengths=lengths, dropout_rate=0.3, rng=1, **TILED)

    found = check("rows", attend, (*WHOLE, LENGTHS), "b.h b.h b.h b", AxisType.Auto, ["all-gather"])
    assert found.output_shardings.spec == PartitionSpec("batch", None, "heads")


def check_mapped():
    """Under `vmap`, an axis may be shared out as well."""
    x = normal(2, 3, 8, 16, 8)
    attend = jax.vmap(partial(ax.flash_attention, is_causal=True, **TILED), in_axes=(0, None, None))
    check("mapped", attend, (x, x[0], x[1]), "b.h .h .h", AxisType.Auto)


def check_groups():
    """Devices may share key/value heads, whose gradients are then summed over them."""
    attend = partial(ax.flash_attention, is_causal=True, dropout_rate=0.3, rng=1, **TILED)
    for heads in (1, 2):
        some = WHOLE[0], *(x[:, :heads] for x in WHOLE[1:])
        check("groups", attend, some, "bh b b", AxisType.Auto)
    found = jax.jit(with_slopes(attend))(*spread(some, "bh b b", AxisType.Auto))
    for one, other in zip(*map(jax.tree.leaves, (found, jax.jit(with_slopes(attend))(*some))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)
    # Three key/value heads on four devices: heads are gathered.
    x = normal(4, 12, 8, 8), normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    check("gathered", attend, x, ".h . .", AxisType.Auto, ["all-gather"])


def check_outside_of_jit():
    """Calls on sharded arrays, and exported programs, share the work out alike, or not at all."""
    q, k, v = spread(WHOLE, "bh bh bh", AxisType.Auto)
    expected = ax.flash_attention(*map(jnp.asarray, WHOLE), **TILED)
    output = ax.flash_attention(q, k, v, **TILED)
    assert output.sharding.spec == PartitionSpec("batch", "heads")
    np.testing.assert_array_equal(output, expected)
    explicit = spread(WHOLE, "bh bh bh", AxisType.Explicit)
    for function in (partial(ax.flash_attention, score_mod=lambda s, *_: 2.0 * s, **TILED), linear.linear_attention):
        with jax.set_mesh(mesh(AxisType.Explicit)):
            found = function(*explicit)
        assert found.sharding.spec[:2] == ("batch", "heads")
        np.testing.assert_allclose(found, function(*map(jnp.asarray, WHOLE)), rtol=1e-13, atol=1e-13)
    exported = jax.export.export(jax.jit(partial(ax.flash_attention, **TILED)))(q, k, v)
    np.testing.assert_array_equal(jax.jit(exported.call)(q, k, v), expected)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    check_calls()
    check_memory()
    check_rows()
    check_mapped()
    check_groups()
    check_outside_of_jit()
