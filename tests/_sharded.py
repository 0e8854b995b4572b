"""A program: attention on eight devices, each with its own batch items and heads, is attention on one."""

from functools import partial

import jax
import numpy as np
from jax.sharding import PartitionSpec

from attention_xp import flash_attention
from attention_xp._backend import spread_like
from tests._inputs import inputs, normal

HEADS = PartitionSpec("batch", "heads")
QKV = tuple(x.astype("float32") for x in inputs((8, 4, 9, 8), (8, 2, 11, 8)))
ARRAYS = {
    "bias": (normal(4, 9, 11), PartitionSpec("heads")),
    "sinks": (normal(4), PartitionSpec("heads")),
    "key_lengths": (np.arange(3, 11), PartitionSpec("batch")),
    "factor": (normal(8, 1, 1, 1), PartitionSpec("batch")),
}
OPTIONS = {"is_causal": True, "window": (6, 1), "query_offset": 2, "softcap": 2.0}


def outcome(impl, names, options, arrays):
    """Output and log-sum-exp, and the gradients in all floating arrays."""
    integers = {n: x for n, x in zip(names, arrays[3:], strict=True) if n == "key_lengths"}

    def loss(floating):
        q, k, v, *rest = floating
        given = dict(zip([n for n in names if n not in integers], rest, strict=True)) | integers
        factor = given.pop("factor", None)
        if factor is not None:
            factor = spread_like(factor, q)
            given["score_mod"] = lambda score, b, h, q_idx, kv_idx: score * factor[b % factor.shape[0], 0, 0, 0]
        output, lse = flash_attention(q, k, v, impl=impl, tile=(4, 5), return_lse=True, **options, **given)
        return (output**2).sum() + lse.sum(), (output, lse)

    floating = [x for x in arrays if x.dtype == "float32"]
    (_, results), slopes = jax.value_and_grad(loss, has_aux=True)(floating)
    return *results, *slopes


def main():
    """Compare one device with eight, for each kernel."""
    mesh = jax.make_mesh((4, 2), ("batch", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for impl in ("auto", "dense", "tiled"):
        for names, options in (((), {}), (("bias", "sinks", "key_lengths"), OPTIONS), (("factor",), {})):
            arrays = [*QKV, *(ARRAYS[n][0] for n in names)]
            arrays = [x.astype("float32" if x.dtype.kind == "f" else "int32") for x in arrays]
            specs = (*(HEADS,) * 3, *(ARRAYS[n][1] for n in names))
            of_slopes = [s for s, x in zip(specs, arrays, strict=True) if x.dtype == "float32"]
            function = partial(outcome, impl, names, options)
            sharded = jax.jit(
                jax.shard_map(function, mesh=mesh, in_specs=(list(specs),), out_specs=(HEADS, HEADS, *of_slopes))
            )
            found = sharded(arrays)
            assert len(found[0].sharding.device_set) == 8
            for one, other in zip(found, jax.jit(function)(arrays), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=f"{impl} {names}")


if __name__ == "__main__":
    main()
