"""Attention on arrays of Dask that lie on disk, by workers of its distributed scheduler."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

from attention_xp import attention_vjp, flash_attention
from attention_xp.distributed import dask_attention, dask_attention_vjp
from tests._inputs import normal

LIMIT = 350 * 2**20


def without_numba():
    """Let numba be no module that can be imported."""
    sys.modules["numba"] = None


@pytest.fixture
def client():
    """Two workers of one thread, without numba: its compiler alone takes 100 MB."""
    quiet = {"distributed.admin.system-monitor.gil.enabled": False, "distributed.worker.profile.enabled": False}
    workers = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": LIMIT}
    with (
        dask.config.set(quiet),
        LocalCluster(**workers, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        client.run(without_numba)
        yield client


def stored(path, shape, chunks, seed):
    """Write normal numbers to disk, a chunk at a time."""
    array = zarr.create_array(path, shape=shape, chunks=chunks, dtype="float32")
    for start in range(0, shape[-2], chunks[-2]):
        part = normal(*shape[:-2], chunks[-2], shape[-1], seed=seed + start).astype(np.float32)
        array[..., start : start + chunks[-2], :] = part
    return array


def peak():
    """Return the most memory that this process has had, in bytes.

    Linux counts as a process's own, in `getrusage`, what that had which began it; its status tells them apart.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_keys_on_disk_take_little_memory(client, tmp_path):
    keys, width, chunk = 65_536, 128, 2_048
    key, value = (stored(tmp_path / name, (4, keys, width), (4, chunk, width), i) for i, name in enumerate("kv"))
    query = stored(tmp_path / "q", (4, 256, width), (4, 256, width), 2)
    assert key.nbytes + value.nbytes > 0.6 * LIMIT
    found = dask_attention(*(da.from_zarr(x) for x in (query, key, value))).compute()
    expected = flash_attention(query[...], key[...], value[...])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert max(client.run(peak).values()) < 0.6 * LIMIT


def test_a_worker_that_dies_midway_changes_nothing(client):
    x = normal(2048, 32)
    upstream = normal(2048, 32, seed=1)
    options = {"is_causal": True, "dropout_rate": 0.2, "rng": 3}
    lazy = da.from_array(x, chunks=(128, 32))
    _, vjp = dask_attention_vjp(lazy, lazy, lazy, **options)
    future = client.compute(vjp(upstream).key)
    while not any(client.run(lambda dask_worker: len(dask_worker.data)).values()):
        time.sleep(0.01)
    assert not future.done()
    pids = client.run(os.getpid, nanny=False)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    np.testing.assert_allclose(
        future.result(), attention_vjp(x, x, x, **options)[1](upstream).key, rtol=1e-12, atol=1e-12
    )
    assert set(client.run(os.getpid).values()) != set(pids.values())
