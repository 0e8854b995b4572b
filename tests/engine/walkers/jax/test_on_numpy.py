"""Few rows of JAX arrays in host memory are computed by NumPy's loops, unless JAX traces."""

import numpy as np
import pytest

from attention_xp import flash_attention
from tests import reference
from tests._inputs import inputs, normal
from tests.engine.walkers._few_rows import counted

pytestmark = pytest.mark.backends("jax")


def test_decoding(library, monkeypatch):
    calls = counted(monkeypatch)
    arrays, sinks = inputs((2, 6, 1, 8), (2, 2, 30, 8)), normal(6)
    whole = reference.attention(*arrays, sinks=sinks, softcap=3.0)
    here = [library.array(x) for x in arrays]
    output, lse = flash_attention(*here, sinks=library.array(sinks), softcap=3.0, return_lse=True)
    assert len(calls) > 0
    assert (type(output), output.dtype, output.device) == (type(here[0]), here[0].dtype, here[0].device)
    np.testing.assert_allclose(output, whole.output, atol=2e-6)
    np.testing.assert_allclose(lse, whole.lse, atol=2e-6)


@pytest.mark.parametrize("committed", [(), (0, 1, 2), (1,), (3,)], ids=str)
def test_results_are_committed_where_arrays_are(monkeypatch, committed):
    """An array that nobody placed may meet others on any device, and so may what comes of it."""
    import jax  # noqa: PLC0415

    given = *inputs((1, 4, 1, 8), (1, 2, 30, 8)), normal(4)
    calls, arrays = counted(monkeypatch), [jax.numpy.asarray(x) for x in given]
    for i in committed:
        arrays[i] = jax.device_put(arrays[i], jax.devices()[0])
    found = flash_attention(*arrays[:3], sinks=arrays[3], return_lse=True)
    assert len(calls) > 0
    assert [a.committed for a in found] == [len(committed) > 0] * 2


def test_what_jax_traces_stays_in_jax(library, monkeypatch):
    import jax  # noqa: PLC0415

    calls, arrays = counted(monkeypatch), [library.array(x) for x in inputs((2, 6, 1, 8), (2, 2, 30, 8))]
    whole = reference.attention(*map(np.asarray, arrays)).output
    np.testing.assert_allclose(jax.jit(flash_attention)(*arrays), whole, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(_alone)(*arrays), whole, atol=2e-6)
    slope = jax.grad(lambda query: flash_attention(query, *arrays[1:]).sum())(arrays[0])
    assert np.abs(slope).max() > 0.01
    assert calls == []


def _alone(*arrays):
    return flash_attention(*(x[None] for x in arrays))[0]


def test_others_stay_in_jax(library, monkeypatch):
    """Heads that share no keys, and rules."""
    calls, key = counted(monkeypatch), library.array(normal(1, 2, 30, 8))
    flash_attention(library.array(normal(1, 2, 1, 8)), key, key)
    flash_attention(library.array(normal(1, 4, 1, 8)), key, key, window=(5, 0), query_offset=20)
    assert calls == []
