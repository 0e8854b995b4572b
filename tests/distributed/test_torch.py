"""The strategies on torch, in processes of gloo, against one process."""

import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp.distributed._blocks import Call, Rows
from attention_xp.distributed._costs import Machine, Sizes, costs
from attention_xp.distributed._layouts import Stretch, stretches
from tests.distributed._calls import CALLS, COVERING, S
from tests.distributed._world import World

pytestmark = [pytest.mark.backends("torch"), pytest.mark.timeout(180)]
ON_GRID = "ulysses on 2 x 2"  # the heads are exchanged in pairs, which form a ring
STRATEGIES = ["ring", "gathered", "ulysses", "merged"]
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
all_strategies = pytest.mark.parametrize("strategy", [*STRATEGIES, ON_GRID])
PLACES = [
    *((strategy, n, layout) for strategy in STRATEGIES for n, layout in ((2, "zigzag"), (4, "contiguous"))),
    *((ON_GRID, 4, layout) for layout in ("zigzag", "contiguous")),
]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, library):
    """Make a world of so many ranks, or find it."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    made = {}

    def world(n, name="all"):
        if (n, name) not in made:
            made[n, name] = World(n, tmp_path_factory.mktemp("world"))
        return made[n, name]

    yield world
    for one in made.values():
        one.close()


@functools.cache
def expected(names, dtype, hkv):
    torch, jobs = (importlib.import_module(name) for name in ("torch", "tests.distributed._torch_jobs"))
    return jobs.results(flash_attention, names, getattr(torch, dtype), slice(None), slice(None), hkv)


def parts(whole, rows, keys):
    """What a rank has of the results of the whole."""
    output, lse, query, key, value, *others = whole
    own = [x[:, :, rows] if x.ndim == 4 and x.shape[-2] == S else x for x in others]
    return [output[:, :, rows], lse[:, :, rows], query[:, :, rows], key[:, :, keys], value[:, :, keys], *own]


def of_ranks(worlds, n, strategy, layout, names, dtype="float64", hkv=2):
    """Yield the results of each rank, and what they ought to be."""
    places = importlib.import_module("tests.distributed._torch_jobs").places
    whole = expected(names, dtype, hkv)
    for rank, found in enumerate(worlds(n).run("attended", strategy, layout, names, dtype, hkv)):
        yield found, parts(whole, *places(strategy, layout, n, rank))


@pytest.mark.parametrize(("strategy", "n", "layout"), PLACES)
@pytest.mark.parametrize("names", CALLS)
def test_every_strategy_computes_what_one_process_does(worlds, strategy, n, layout, names):
    check(worlds, n, strategy, layout, names)


@all_strategies
@pytest.mark.parametrize("names", COVERING)
def test_every_pair_of_options(worlds, strategy, names):
    check(worlds, 4, strategy, names.partition(",")[0], names)


@strategies
@pytest.mark.parametrize(("n", "layout", "hkv"), [(2, "contiguous", 2), (4, "zigzag", 2), (4, "zigzag", 1)])
def test_all_options_in_the_other_layout_and_with_fewer_heads(worlds, strategy, n, layout, hkv):
    check(worlds, n, strategy, layout, "all", hkv=hkv)


@pytest.mark.parametrize("grid", ["4 x 1", "1 x 4", "2 x 2"])
def test_grids_of_all_forms_with_one_key_value_head(worlds, grid):
    check(worlds, 4, f"ulysses on {grid}", "zigzag", "all", hkv=1)


def check(worlds, n, strategy, layout, names, **more):
    for found, ought in of_ranks(worlds, n, strategy, layout, names, **more):
        for one, other in zip(found, ought, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("strategy", ["gathered", "ulysses"])
@pytest.mark.parametrize("names", ["bias", "all", COVERING[1]])
def test_gradients_of_gradients(worlds, strategy, names):
    jobs = importlib.import_module("tests.distributed._torch_jobs")
    query, key, value, *others = jobs.twice(flash_attention, names, slice(None), slice(None))
    for rank, found in enumerate(worlds(4).run("differentiated_twice", strategy, "zigzag", names)):
        rows, keys = jobs.places(strategy, "zigzag", 4, rank)
        own = [x[:, :, rows] if x.shape[-2:] == (S, S) else x for x in others]
        for one, other in zip(found, [query[:, :, rows], key[:, :, keys], value[:, :, keys], *own], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strategy", ["ring", "merged", ON_GRID])
def test_gradients_of_gradients_are_refused_where_there_are_none(worlds, strategy):
    for said in worlds(4).run("differentiated_twice", strategy, "zigzag", "causal"):
        assert "_attention on these ranks has no gradients of gradients: take gathered_attention" in said


@all_strategies
def test_queries_and_keys_of_different_lengths(worlds, strategy):
    found = worlds(4).run("crossed", strategy, "zigzag")
    assert max(error for error, _ in found) < 1e-13
    assert {shape for _, shape in found} == {(2, 4, 16 if strategy == "merged" else 4, 6)}


def test_a_token_is_decoded(worlds):
    assert max(worlds(4).run("decoded")) < 1e-13


@all_strategies
def test_arrays_within_rules_have_own_rows(worlds, strategy):
    assert max(worlds(4).run("with_array_rule", strategy, "zigzag")) < 1e-13


@strategies
def test_meshes_and_distributed_tensors(worlds, strategy):
    for answer in worlds(2).run("on_mesh", strategy, 2):
        assert answer == ("TypeError" if strategy == "merged" else (True, "DTensor", (2, 4, 16, 6)))


def test_distributed_tensors_on_two_axes(worlds):
    assert worlds(4).run("on_mesh", ON_GRID, 2, 2) == [(True, "DTensor", (2, 4, 16, 6))] * 4


@strategies
def test_a_rank_alone(worlds, strategy):
    assert max(worlds(2).run("alone", strategy)) < 1e-13


@pytest.mark.parametrize(
    ("strategy", "case", "words"),
    [
        ("ring", "odd", "even number of positions"),
        ("ring", "captured", "score_mod has captured a tensor"),
        ("gathered", "captured", "score_mod has captured a tensor"),
        ("ring", "values", "key and value must have one dtype"),
        ("ulysses", "heads", "divisible by the number of ranks, 2"),
        ("ulysses", "axes", "must have heads"),
        ("ring", "generator", "rng must be an int seed"),
        ("ring", "width", "key has width"),
        ("ring", "group", "group must be a ProcessGroup or a DeviceMesh"),
        ("ring", "axes of a mesh", "one axis"),
        ("ulysses", "three groups", "a tuple of 3"),
        ("ulysses", "the same group twice", "groups that cross: expected those of a mesh of 2 x 2"),
    ],
)
def test_what_no_rank_can_compute_is_refused_on_all(worlds, strategy, case, words):
    for said in worlds(2).run("wrong", strategy, case):
        assert words in said


@all_strategies
def test_16_bit_numbers_are_merged_in_float32(worlds, strategy):
    exact = expected("causal", "float64", 2)
    bound = [
        2 * np.max(np.abs(one - other)) for one, other in zip(expected("causal", "bfloat16", 2), exact, strict=True)
    ]
    errors = [
        [np.max(np.abs(one - other)) for one, other in zip(found, ought, strict=True)]
        for (found, _), (_, ought) in zip(
            of_ranks(worlds, 4, strategy, "zigzag", "causal", "bfloat16"),
            of_ranks(worlds, 4, strategy, "zigzag", "causal"),
            strict=True,
        )
    ]
    assert np.all(np.max(errors, axis=0) <= bound)


@all_strategies
def test_a_seed_draws_what_it_draws_in_one_process(worlds, strategy):
    jobs = importlib.import_module("tests.distributed._torch_jobs")
    whole = jobs.all_dropped()
    assert 0.5 < whole.mean() < 0.7
    for rank, found in enumerate(worlds(4).run("dropped", strategy, "zigzag")):
        np.testing.assert_array_equal(found, whole[:, :, jobs.places(strategy, "zigzag", 4, rank)[0]])


@pytest.mark.parametrize("n", [2, 4])
def test_zigzag_gives_every_rank_the_same_blocks(worlds, n):
    assert [blocks for blocks, _ in worlds(n).run("counted", "zigzag", "causal", 16)] == [2 * n + 1] * n


def test_a_window_sends_the_keys_it_reaches(worlds):
    found = worlds(4).run("counted", "contiguous", "causal window", 64)  # 4 positions to the left
    width = (4 + 4) * 8  # bytes of a key and a value
    # On the way back the keys once more, and the gradients of those of another rank.
    assert [sent for _, sent in found] == [[4 * width, 4 * width], *[[4 * width, 8 * width]] * 2, [0, 4 * width]]
    assert [blocks for blocks, _ in found] == [1, 2, 2, 2]


def of_plan(worlds, strategy, layout, planned, **which):
    """What is sent and kept by the rank that sends and keeps most, and what the plan says of it."""
    call = Sizes(Sq=1024, Sk=1024, B=1, H=8, Hkv=4, D=64, itemsize=4, **which)
    plan = next(cost for cost in costs(call, Machine(4, 1.0, 1.0, 0.0, 1e12)) if cost.strategy == planned)
    return np.max(worlds(4).run("kept", strategy, layout, call), axis=0), (plan.volume, plan.memory)


@pytest.mark.parametrize(("is_causal", "window"), [(False, None), (True, None), (True, 100), (False, 30), (True, 300)])
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_rings_send_and_keep_what_is_planned(worlds, layout, is_causal, window):
    found, planned = of_plan(worlds, "ring", layout, f"ring, {layout}", is_causal=is_causal, window=window)
    assert np.all(found <= planned)
    if window is None or (layout == "contiguous" and window < 256):
        assert found.tolist() == list(planned)


@pytest.mark.parametrize(
    ("strategy", "planned", "more"),  # the log-sum-exp is sent as well; partial results of a ring come on top
    [("gathered", "gathered", 0.01), ("ulysses", "ulysses", 0.02), (ON_GRID, "ulysses x ring", 0.3)],
)
def test_exchanges_send_and_keep_what_is_planned(worlds, strategy, planned, more):
    (sent, kept), (volume, memory) = of_plan(worlds, strategy, "zigzag", planned, is_causal=True, window=None)
    assert volume <= sent <= 1.01 * volume
    assert 0.99 * memory <= kept <= (1 + more) * memory


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize("names", ["nothing", "causal", "window", "prefix", "plain lengths", "segments", "offset"])
def test_what_is_sent_reaches_from_the_first_to_the_last_key_that_is_attended(library, layout, names):
    plan = importlib.import_module("attention_xp.distributed._torch.plan")
    n, options = 4, CALLS[names](library.array, slice(None))
    call = Call(options.pop("mask", None), 0.0, options, Sq=S, Sk=S)
    for rank in range(n):
        for (receiver, owner), found in plan.Ring(call, rank, n, layout).reached.items():
            rows = Rows.of(stretches(n, receiver, S, layout))
            ought = []
            for keys in stretches(n, owner, S, layout):
                each = [k for k in range(*keys.bounds) if any(call.any_allowed(one, Stretch(k, 1)) for one in rows)]
                ought += [Stretch(each[0], each[-1] + 1 - each[0])] if each else []
            assert found == ought


@pytest.mark.rare
def test_the_program_of_the_documentation_runs():
    program = Path(__file__).parents[2] / "examples" / "ring_torch.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    paths = os.pathsep.join([str(program.parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=150, check=True, env={**os.environ, "PYTHONPATH": paths}
    )
    errors = list(map(float, re.findall(r"error (\d\S*?)(?=\s|rank|$)", run.stdout)))
    assert len(errors) == 2
    assert max(errors) < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("shape", "query (float32[1, 4, 4, 4] on rank 0, 1, 3; float32[1, 4, 6, 4] on rank 2)"),
        ("dtype", "ranks differ in key"),
        ("option", "is_causal"),
        ("seed", "rng"),
        ("lengths", "key_lengths"),
        ("rule", "mask (GlobalMask"),
    ],
)
@all_strategies
def test_a_rank_with_another_call_is_named_on_all(worlds, strategy, change, words):
    for rank, said in enumerate(worlds(4).run("refused", strategy, 2, change)):
        assert said.startswith(
            f"ValueError: {strategy.partition(' ')[0]}_attention on rank {rank} of 4: ranks differ in"
        )
        assert words in said
        assert "on rank 0, 1, 3; " in said
        assert "on rank 2)" in said


@strategies
def test_a_rank_that_stalls_is_named_and_the_group_works_again(worlds, strategy):
    for rank, said in enumerate(worlds(4).run("refused", strategy, 1, "stall", 0.5)):
        if rank != 1:
            assert said.startswith(f"TimeoutError: {strategy}_attention on rank {rank} of 4, comparing the calls")
            assert "rank 1 did not answer within 0.5 seconds" in said


def test_a_rank_of_a_grid_that_stalls_is_named_and_the_groups_work_again(worlds):
    said = worlds(4).run("refused", ON_GRID, 1, "stall", 0.5)
    for rank, waits_for in ((0, 1), (2, 0), (3, 1)):  # rank 2 waits for one that has given up
        assert said[rank].startswith(f"TimeoutError: ulysses_attention on rank {rank} of 4, comparing the calls")
        assert f"rank {waits_for} did not answer within 0.5 seconds" in said[rank]


@pytest.mark.parametrize("way", ["in step 1", "back"])
def test_a_rank_that_dies_is_named(worlds, way):
    answers = worlds(3, way).run("died", 1, 5.0, way)
    assert answers[1] is None
    for rank in (0, 2):
        # Where it is not rank 1 itself that a rank waits for, it is one that has given up.
        assert re.match(rf"(Connection|Timeout)Error: ring_attention on rank {rank} of 3, ", answers[rank])
        assert re.search(r"rank 1 is gone: |did not answer within 5 seconds; gone is rank 1$", answers[rank])
