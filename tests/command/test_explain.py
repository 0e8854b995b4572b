"""``explain``: what it tells of a call, and its estimates."""

from dataclasses import replace

import numpy as np
import pytest

from attention_xp import attention_vjp
from attention_xp._command import estimate, places
from attention_xp._command.calls import Call
from attention_xp._command.main import main
from attention_xp._command.peak import extra_bytes

NUMPY = places.find_places(["numpy"])[0][0]
ALL_OPTIONS = {"segment": 64, "has_alibi": True, "is_causal": True, "window": (50, None), "query_offset": 0}
CALL = Call(2, 8, 300, 16, 200, 2, 8, is_causal=True, window=(64, 0), query_offset=0, key_length=150)


@pytest.fixture(autouse=True)
def in_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def test_a_call_of_any_size_is_told(capsys):
    shape = ["--shape", "1,32,131072,128", "--kv-heads", "8"]
    assert main(["explain", *shape, "--causal", "--window", "4096,0", "--no-measure"]) == 0
    out, err = capsys.readouterr()
    assert "query 1 x 32 x 131072 x 128, key 1 x 8 x 131072 x 128, value 1 x 8 x 131072 x 128" in out
    assert "tiled   chosen" in out
    assert "1.69e+10 of query and key, 3.08% of all" in out
    assert "% skipped" in out
    assert "time" not in out
    assert err == ""


@pytest.mark.parametrize(
    ("backend", "arguments", "chosen"),
    [
        pytest.param(
            backend, arguments, chosen, marks=pytest.mark.backends(backend), id=" ".join([backend, *arguments])
        )
        for backend, arguments, chosen in [
            ("numpy", ["--weights"], "dense"),
            ("numpy", ["--dropout", "0.5", "--softcap", "3"], "tiled"),
            ("numpy", ["--dtype", "float16"], "tiled"),
            ("torch", [], "fused"),
            ("torch", ["--softcap", "3", "--dtype", "bfloat16"], "tiled"),
            ("jax", ["--dropout", "0.5", "--key-length", "9"], "tiled"),
        ]
    ],
)
def test_every_library_chooses(capsys, backend, arguments, chosen):
    pytest.importorskip(backend)
    assert main(["explain", "--backend", backend, "--no-measure", *arguments]) == 0
    assert f"{chosen:8}chosen" in capsys.readouterr().out


def test_seconds_and_memory_are_told(capsys):
    assert main(["explain", "--shape", "1,2,64,8"]) == 0
    out, err = capsys.readouterr()
    assert "time    about" in out
    assert "memory  about" in out
    assert "measured at 1 x 2 heads, 64 queries, 64 keys" in out
    assert "[1/1] measured" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--segments", "4"], "1.02e+03 of query and key, 25.00% of all"),
        (["--segments", "3", "--causal"], "of query and key, 17.48% of all"),  # 22, 22 and 20
        (["--bias", "alibi", "--backward"], "forward and backward"),
    ],
    ids=["segments", "causal segments", "backward"],
)
def test_what_is_described_is_in_the_call(capsys, arguments, expected):
    assert main(["explain", "--shape", "1,1,64,8", *arguments]) == 0
    out = capsys.readouterr().out
    assert expected in out
    assert "without NaN in the arrays" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backward", "--weights"], "no call returns them with --weights"),
        (["--segments", "65"], "at most the number of keys, 64, got 65"),
        (["--bias", "t5"], "invalid choice"),
    ],
    ids=["weights", "segments", "bias"],
)
def test_contradictions_are_wrong_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["explain", "--shape", "1,1,64,8", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("backend", [pytest.param(b, marks=pytest.mark.backends(b)) for b in ("numpy", "torch", "jax")])
def test_gradients_are_those_of_the_call(backend):
    """What is timed as backward computes what `attention_vjp` does, on every library."""
    pytest.importorskip(backend)
    place = places.find_places([backend])[0][0]
    call = Call.square(2, 128, 8, is_backward=True, **ALL_OPTIONS)
    arrays = call.arrays(place)
    found = call.ours(place, arrays)()[:3]
    q, k, v = map(np.asarray, map(place.to_host, arrays))
    i = np.arange(128)
    mask = (i[:, None] // 64 == i // 64) & (i <= i[:, None]) & (i[:, None] - i <= 50)
    bias = -(np.asarray([2**-4, 2**-8])[:, None, None]) * np.abs(i[:, None] - i)
    output, vjp = attention_vjp(q, k, v, mask, bias=bias)
    for gradient, expected in zip(found, vjp(output)[:3], strict=True):
        np.testing.assert_allclose(place.to_host(gradient), expected, atol=2e-5)


def test_gradients_take_memory(monkeypatch):
    """The gradients are results as the output is."""
    call = Call.square(2, 4096, 32, is_backward=True, window=(64, 0), query_offset=0)
    monkeypatch.setattr(estimate, "SHORTEST", 2048)
    monkeypatch.setattr(estimate, "LONG_ENOUGH", 1e-9)
    found = estimate.estimated(call, "tiled", NUMPY)
    assert found.extra == pytest.approx(extra_bytes(call.ours(NUMPY, call.arrays(NUMPY))), rel=0.33)


def test_a_library_that_is_missing_fails(monkeypatch, capsys):
    monkeypatch.setitem(places.MODULES, "torch", "no_such_module")
    assert main(["explain", "--backend", "torch"]) == 1
    assert "torch: not installed" in capsys.readouterr().err


def test_pairs_are_those_that_are_allowed():
    q, k = np.indices((300, 200))
    allowed = (k <= q) & (q - k <= 64) & (k < 150)
    assert CALL.pairs == pytest.approx(2 * 8 * allowed.sum())
    assert replace(CALL, is_causal=False, window=None, key_length=None).pairs == 2 * 8 * 300 * 200


def test_segments_keep_their_length_in_samples():
    call = replace(CALL, queries=4096, keys=4096, segment=512, window=None, is_causal=False, key_length=None)
    assert call.density == 1 / 8
    assert {c.segment for c in estimate._growing(call)} == {512}
    offset = replace(call, queries=100, query_offset=5000)
    assert offset.pairs == 0.0  # the queries stand behind the last segment of keys
    assert offset._segments.query_ids.shape == (5100,)


def test_samples_grow_to_the_call_itself():
    call = replace(CALL, queries=4096, keys=2048, query_offset=1024, key_length=2000)
    samples = estimate._growing(call)
    assert samples[-1] == call
    assert (samples[0].queries, samples[0].keys, samples[0].query_offset) == (512, 256, 128)
    sizes = [c.batch * c.heads * c.queries * c.keys for c in samples]
    assert sizes == sorted(set(sizes))
    assert {c.heads // c.kv_heads for c in samples} == {4}


@pytest.mark.parametrize(("kernel", "length"), [("dense", 1024), ("tiled", 32768)])
def test_memory_is_foreseen(monkeypatch, kernel, length):
    """Two samples, up to half the length, tell the memory of the whole to a third."""
    call = Call.square(2, length, 32, is_causal=True, window=(128, 0), impl=kernel)
    monkeypatch.setattr(estimate, "SHORTEST", length // 4)
    monkeypatch.setattr(estimate, "LONG_ENOUGH", 1e-9)
    found = estimate.estimated(call, kernel, NUMPY)
    assert found.sample == replace(call, heads=1, kv_heads=1, queries=length // 2, keys=length // 2)
    assert found.extra == pytest.approx(extra_bytes(call.ours(NUMPY, call.arrays(NUMPY))), rel=0.33)


def test_time_grows_with_the_pairs(monkeypatch):
    call = Call.square(4, 4096, 16)
    monkeypatch.setattr(estimate, "_measured", lambda c, place: estimate._Sample(c, 1e-9 * c.pairs, c.result_bytes))
    found = estimate.estimated(call, "tiled", NUMPY)
    assert found.seconds == pytest.approx(1e-9 * call.pairs)
    assert found.extra == call.result_bytes
