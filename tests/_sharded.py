"""A program: on eight devices, each with its own batch items and heads, each computes what it would alone.

What a device would compute alone, NumPy tells; so it does of the gradients, by differences.
"""

import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from attention_xp import flash_attention
from attention_xp._backend.sharding import spread_like
from tests._inputs import normal
from tests._public_calls import CALLS

MESH = {"batch": 4, "heads": 2}
AXES = {"b": "batch", "h": "heads", ".": None}
# How the axes of each argument are shared out: b over batch, h over heads, "." and those that are not named over none.
SHARED = {
    "": "bh bh bh",
    "boolean mask": "bh bh bh b",
    "float mask": "bh bh bh b",
    "bias": "bh bh bh h",
    "lengths": "bh bh bh b b",
    "every option": "bh bh bh b h h b h",
    "every mask": "bh bh bh . b",
    "every bias": "bh bh bh h .h",
    "relative scores": "bh bh bh .",
    "attention_vjp": "bh bh bh h h",
    "attention_gradients": "bh bh bh .",
    "attention_scores": "bh bh h",
    "attention_statistics": "bh bh",
    "varlen_attention": ".h .h .h .",
    "self_attention": "b",
    "cross_attention": "b b",
    "multi_head_attention": "b b",
    "multi-head params": "b . . . . .",
    "linear_attention": "bh bh bh bh bh",
    "softmax": "b",
    "layer_normalization": "b . .",
    "dropout": "b",
    "rotary_embedding": "b",
    "rotary positions": "bh .b",
    "rotary scaling": "b b",
    "rotary cache": "bh .b .",
    "axial_rotary_embedding": "b",
    "permute_rotary_weights": "b",
    "create_padding_mask": "b",
}
CAPTURED = ("every option", "every mask")  # what their functions hold has to differ where the query does
STEP = 1e-5


def enlarged(array, letters):
    """An argument for as many batch items as there are devices for."""
    if "b" not in letters:
        return array
    factors = (1.0, 0.5, 2.0, 0.75) if array.dtype.kind == "f" else (True,) * 4
    return np.concatenate([array * np.asarray(f, array.dtype) for f in factors], axis=letters.index("b"))


def shard(array, letters, place):
    """The part of an argument that the device at a place of the mesh has."""
    for axis, letter in enumerate(letters):
        if letter in "bh":
            i = "bh".index(letter)
            array = np.split(array, list(MESH.values())[i], axis=axis)[place[i]]
    return array


def direction(array):
    """Some change of an argument."""
    return np.cos(1.0 + np.arange(array.size)).reshape(array.shape)


def total(outputs, xp):
    """The sum of all results, each number with a weight of its own."""
    return sum((xp.sin(1.0 + xp.arange(y.size)) * y.ravel()).sum() for y in outputs)


def over_devices(function, in_specs, out_specs):
    """A function as all devices call it, each with its part of the arguments."""
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


def on_devices(name, function, arrays, letters):
    """The results of each device, and the slopes of the sum of all totals."""
    moving = [x.dtype.kind == "f" for x in arrays]
    specs = [PartitionSpec(*(AXES[letter] for letter in some)) for some in letters]

    def outputs(arrays):
        if name in CAPTURED:
            arrays = spread_like(arrays, arrays)
        return spread_like(jax.tree.leaves(function(*arrays)), jax.lax.axis_index(tuple(MESH)))

    def with_slopes(arrays):
        def loss(some):
            rest = iter(some)
            found = outputs([next(rest) if moves else x for x, moves in zip(arrays, moving, strict=True)])
            return total(found, jax.numpy), found

        some = [x for x, moves in zip(arrays, moving, strict=True) if moves]
        (_, found), slopes = jax.value_and_grad(loss, has_aux=True)(some) if some else ((0, outputs(arrays)), [])
        return [x[None] for x in found], slopes

    of_slopes = [spec for spec, moves in zip(specs, moving, strict=True) if moves]
    return over_devices(with_slopes, (specs,), (PartitionSpec(tuple(MESH)), of_slopes))(arrays)


def check(name, function, arguments):
    """Compare eight devices with NumPy on the part of each."""
    letters = SHARED.get(name, SHARED[""]).split()
    arrays = [enlarged(x, some) for x, some in zip(arguments, letters, strict=True)]
    found, slopes = on_devices(name, function, arrays, letters)

    def alone(place, step):
        moved = [x + step * direction(x) if x.dtype.kind == "f" else x for x in arrays]
        return jax.tree.leaves(function(*(shard(x, some, place) for x, some in zip(moved, letters, strict=True))))

    places = list(np.ndindex(*MESH.values()))
    for device, place in enumerate(places):
        for one, other in zip(found, alone(place, 0.0), strict=True):
            np.testing.assert_allclose(one[device], other, rtol=1e-5, atol=1e-5, err_msg=name)
    if slopes:
        above, below = (sum(total(alone(place, step), np) for place in places) for step in (STEP, -STEP))
        slope = sum((x * direction(x)).sum() for x in map(np.asarray, slopes))
        np.testing.assert_allclose(slope, (above - below) / (2.0 * STEP), rtol=1e-5, atol=1e-5, err_msg=name)


def check_refusal():
    """Tiles cannot differentiate by what a function holds that is alike on devices whose queries are not."""

    def attend(x, factor):
        return flash_attention(x, x, x, score_mod=lambda score, *_: factor[0] * score, impl="tiled", tile=(2, 3))

    own = PartitionSpec(*MESH)
    with pytest.raises(ValueError, match=r"pcast.* to differ along \['batch', 'heads'\], got \['batch'\]"):
        over_devices(attend, (own, PartitionSpec("batch")), own)(np.ones((4, 2, 5, 8)), np.ones(4))


def check_explicit_mesh():
    """Where types share arrays out, XLA shares the call out: the result is sharded as the query, along any axis but the width."""
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    x = normal(4, 2, 6, 8)
    expected = flash_attention(x, x, x, is_causal=True)

    def attend(impl, *spec):
        shared = jax.device_put(x, jax.sharding.NamedSharding(mesh, PartitionSpec(*spec)))
        output = jax.jit(lambda x: flash_attention(x, x, x, is_causal=True, impl=impl, tile=(2, 3)))(shared)
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
        return output.sharding.spec

    with jax.set_mesh(mesh):
        for impl in ("dense", "auto", "tiled"):
            assert attend(impl, "batch", "heads") == PartitionSpec("batch", "heads", None, None)
        for spec in (("batch",), (None, "heads"), (None, None, "heads"), (None, None, None, "heads")):
            assert attend("tiled", *spec)[:3] == (*spec, None, None, None)[:3]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    check_refusal()
    check_explicit_mesh()
    chosen = sys.argv[1]  # "tiled", or "" for all others
    for name, (function, arguments) in CALLS.items():
        if name.endswith("tiled") == (chosen == "tiled"):
            check(name.partition(", ")[0], function, arguments)
