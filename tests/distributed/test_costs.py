"""The formulas of costs against counts of what each rank holds, needs and is sent."""

import argparse

import numpy as np
import pytest

from attention_xp.distributed import shard_positions
from attention_xp.distributed._costs import Machine, Sizes, best, costs
from attention_xp.distributed._layouts import Stretch
from attention_xp.distributed._plan import add_arguments, run

CALLS = {
    "open": {"is_causal": False, "window": None},
    "causal": {"is_causal": True, "window": None},
    "window": {"is_causal": True, "window": 3},
    "window to both sides": {"is_causal": False, "window": 5},
    "wide window": {"is_causal": True, "window": 13},
}
P, E = 4, 2
EVEN = Machine(ranks=P, flops=1.0, bandwidth=1.0, latency=0.0, memory=1e12)


def sizes(name, Sq=24, Sk=24, H=8, Hkv=4):
    return Sizes(Sq=Sq, Sk=Sk, B=3, H=H, Hkv=Hkv, D=6, itemsize=E, **CALLS[name])


def allowed(call):
    """Every pair of a query and a key."""
    q, k = np.arange(call.Sq)[:, None] + call.Sk - call.Sq, np.arange(call.Sk)
    keep = (k <= q) if call.is_causal else np.ones((call.Sq, call.Sk), bool)
    return keep if call.window is None else keep & (abs(q - k) <= call.window)


def of(call, strategy, machine=EVEN):
    return next(cost for cost in costs(call, machine) if cost.strategy == strategy)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("lengths", [(24, 24), (7, 24), (24, 9)])
def test_pairs_are_counted(name, lengths):
    call = sizes(name, *lengths)
    keep = allowed(call)
    for rows in (Stretch(0, call.Sq), Stretch(2, 5), Stretch(6, 1)):
        assert call.pairs(rows) == keep[slice(*rows.bounds)].sum()
        assert call.pairs(rows, Stretch(3, 4)) == keep[slice(*rows.bounds), 3:7].sum()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_a_ring_passes_all_other_shards_on(name, layout):
    call = sizes(name)
    holds = [shard_positions(P, rank, call.Sk, layout) for rank in range(P)]
    sent = np.zeros(P, int)
    for _ in range(P - 1):  # every rank sends what it has to the next one
        sent += [2 * np.empty((call.B, call.Hkv, len(own), call.D), np.float16).nbytes for own in holds]
        holds = [holds[(rank - 1) % P] for rank in range(P)]
    if layout == "contiguous" and call.window is not None:
        call = call._replace(window=None)
    cost = of(call, f"ring, {layout}")
    assert [cost.volume] * P == sent.tolist()
    # Halves of keys and values; what is counted is in test_torch.py.
    shards = 5 if layout == "zigzag" and call.is_causal else 4
    assert cost.memory == shards * call.B * call.Hkv * call.Sk // P * call.D * E
    assert of(call, "gathered").volume == cost.volume
    assert of(call, "gathered").memory == 3 * call.B * call.Hkv * call.Sk * call.D * E


@pytest.mark.parametrize("name", ["window", "window to both sides", "wide window"])
def test_a_window_sends_the_keys_that_it_reaches(name):
    call = sizes(name)
    received = []
    for rank in range(P):
        own = shard_positions(P, rank, call.Sk, "contiguous")
        reached = set(np.flatnonzero(allowed(call)[own].any(axis=0))) - set(own)
        received.append(len(reached) * 2 * call.B * call.Hkv * call.D * E)
    assert of(call, "ring, contiguous").volume == max(received)


@pytest.mark.parametrize("heads", [(8, 8), (8, 4), (8, 2)])
def test_ulysses_sends_what_changes_its_rank(heads):
    call = sizes("causal", H=heads[0], Hkv=heads[1])
    sent = 0
    for count in (call.H, call.H, max(call.Hkv, P), max(call.Hkv, P)):  # query, output, and keys and values, repeated
        rank_of_head = np.arange(count) * P // count
        rank_of_row = np.arange(call.Sk) * P // call.Sk
        leaves = (rank_of_row[:, None] == 1) & (rank_of_head != 1)
        sent += leaves.sum() * call.B * call.D * E
    assert of(call, "ulysses").volume == sent


@pytest.mark.parametrize(("heads", "mesh"), [((6, 6), (2, 2)), ((6, 2), (2, 2)), ((8, 1), (2, 2))])
def test_a_mesh_exchanges_heads_and_passes_keys_on(heads, mesh):
    call = sizes("causal", H=heads[0], Hkv=heads[1])
    cost, (ring, count), sent = of(call, "ulysses x ring"), mesh, 0
    repeated = np.lcm(call.Hkv, count)
    for all_heads in (call.H, call.H, repeated, repeated):
        sent += (call.Sk // P) * (all_heads - all_heads // count) * call.B * call.D * E
    sent += (ring - 1) * 2 * (repeated // count) * (call.Sk // ring) * call.B * call.D * E
    assert (cost.mesh, cost.volume, cost.problem) == (mesh, sent, None)
    seconds = of(call, "ulysses x ring", EVEN._replace(bandwidth=1e30)).time
    keep = allowed(call)
    pairs = max(keep[shard_positions(ring, rank, call.Sq, "zigzag")].sum() for rank in range(ring))
    assert seconds == pytest.approx(4 * call.B * call.H * call.D * pairs / count)


def test_the_quickest_mesh_that_can_be_taken_is_planned():
    machine = EVEN._replace(ranks=12, flops=1e30)
    for heads, ring in ((8, 3), (6, 2), (4, 3), (9, 4)):  # 12 ranks with as many heads as divide both
        assert of(sizes("causal", H=heads, Hkv=heads), "ulysses x ring", machine).mesh == (ring, 12 // ring)
    assert "not divisible" in of(sizes("causal", H=5, Hkv=5), "ulysses x ring", machine).problem
    assert "no mesh" in of(sizes("causal"), "ulysses x ring", EVEN._replace(ranks=3)).problem


def test_merging_sends_results_whatever_the_length():
    one, other = (of(sizes("causal", Sq=1, Sk=length), "merged") for length in (24, 2400))
    assert one.volume == other.volume == 2 * 3 * 8 * 1 * (6 + 1) * 4


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("strategy", "layout"), [("ring, zigzag", "zigzag"), ("gathered", "zigzag"), ("ring, contiguous", "contiguous")]
)
def test_time_is_that_of_the_busiest_rank(name, strategy, layout):
    call, endless = sizes(name), EVEN._replace(bandwidth=1e30)
    keep = allowed(call)
    pairs = max(keep[shard_positions(P, rank, call.Sq, layout)].sum() for rank in range(P))
    assert of(call, strategy, endless).time == pytest.approx(4 * call.B * call.H * call.D * pairs)
    assert of(call, "ulysses", endless).time == pytest.approx(4 * call.B * call.H * call.D * keep.sum() / P)
    slow = EVEN._replace(flops=1e30, latency=5.0)
    cost = of(call, strategy, slow)
    assert cost.time == pytest.approx(cost.volume + 5.0 * cost.messages)


def test_what_cannot_be_taken_says_why():
    found = {cost.strategy: cost for cost in costs(sizes("causal", H=6, Hkv=6), EVEN._replace(memory=12_000.0))}
    assert found["ulysses"].problem == "6 heads are not divisible by 4 ranks"
    assert found["gathered"].problem == "does not fit into memory"
    assert found["ring, zigzag"].problem is None
    assert best(list(found.values())).strategy == "ring, zigzag"
    assert best(costs(sizes("causal"), EVEN._replace(memory=1.0))) is None
    assert "not divisible" in of(sizes("causal", Sq=1), "ring, zigzag").problem


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        ("--tokens 1e6 --hosts 64 --kv-heads 8", 'ring_attention(..., layout="zigzag")'),
        ("--tokens 1e6 --hosts 64 --kv-heads 8 --window 4096", 'ring_attention(..., layout="contiguous")'),
        ("--tokens 1e6 --hosts 64 --kv-heads 8 --queries 1", "merged_attention(...)"),
        ("--tokens 1e6 --hosts 8 --flops 1e17", "ulysses_attention(...)"),
        (
            "--tokens 1e6 --hosts 64 --kv-heads 8 --bandwidth 5e9",
            "ulysses_attention(..., group=(ring, heads)) on a mesh of 16 (ring) x 4 (heads)",
        ),
        ("--tokens 1e6 --hosts 8 --memory 1e9", None),
    ],
)
def test_the_table_says_which_to_take(capsys, arguments, taken):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    status = run(parser.parse_args(arguments.split()))
    printed = capsys.readouterr().out
    assert status == (taken is None)
    assert f"Take attention_xp.distributed.{taken}." in printed or taken is None
    assert printed.count("<- take this") == (taken is not None)
    assert all(
        strategy in printed
        for strategy in ("ring, zigzag", "ring, contiguous", "gathered", "ulysses", "ulysses x ring", "merged")
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "--tokens 1e6",
        "--tokens 0 --hosts 2",
        "--tokens 1.5 --hosts 2",
        "--tokens x --hosts 2",
        "--tokens inf --hosts 2",
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments.split())
    assert "error:" in capsys.readouterr().err
