"""A program: one of two processes, each with one device of JAX, that attend along a ring as one device does."""

import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as Spec

from attention_xp import flash_attention
from attention_xp.distributed import ring_attention, shard_positions
from tests._inputs import normal


def attend(address: str, rank: int) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    kinds = (jax.sharding.AxisType.Auto,)
    mesh, spec = jax.make_mesh((2,), ("ring",), axis_types=kinds), Spec(None, None, "ring")
    whole = [normal(1, 2, 16, 8, seed=seed) for seed in range(3)]
    own = shard_positions(2, rank, 16, "zigzag")
    shards = [jax.make_array_from_process_local_data(NamedSharding(mesh, spec), x[:, :, own]) for x in whole]

    def loss(*inputs: Any) -> Any:
        ring = jax.shard_map(
            lambda *x: ring_attention(*x, is_causal=True, group="ring"), mesh=mesh, in_specs=(spec,) * 3, out_specs=spec
        )
        return (ring(*inputs) ** 2).sum()

    found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*shards)
    expected = jax.value_and_grad(lambda *x: (flash_attention(*x, is_causal=True) ** 2).sum(), (0, 1, 2))(*whole)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
    for one, other in zip(found[1], expected[1], strict=True):
        (shard,) = one.addressable_shards
        np.testing.assert_allclose(shard.data, np.asarray(other)[:, :, own], rtol=1e-13, atol=1e-13)
    jax.distributed.shutdown()


if __name__ == "__main__":
    attend(sys.argv[1], int(sys.argv[2]))
