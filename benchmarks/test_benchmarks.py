"""The parts of the benchmarks that measure nothing themselves."""

import re
import time

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._command.duel import Duel, Pace, Turn, duel, take_turn
from benchmarks import borders, ring
from benchmarks.case import OPTIONS, Case
from benchmarks.comparison import Comparison, Memory, Row, with_means
from benchmarks.contenders import absent, contender, contenders, find
from benchmarks.curves import LONGEST, Curve
from benchmarks.formula import usual_attention
from benchmarks.memory import extra_memory, peak_memory
from benchmarks.plots import MARKERS, draw
from benchmarks.report import COLUMNS, cells, environment, file_name, machine, markdown, table, write_section
from benchmarks.suites import DEFAULT, SUITES, USUAL
from benchmarks.worker import ContenderError, Workers

MIB = 2**20
SMALL = Case((1, 2, 16, 8))


def turns(*walls):
    remaining = iter(walls)
    return lambda calls: Turn(next(remaining), calls)


def test_duel_takes_the_median_of_the_pairwise_ratios_and_drops_the_first_turn():
    outcome = duel(turns(9, 1, 2, 30), turns(9, 1, 4, 10), Pace(rounds=3, limit=1000))
    assert (outcome.ours, outcome.theirs, outcome.ratio, outcome.difference) == (2, 4, 1, 0)
    assert outcome.middle == outcome.pairs[0]  # whose ratio is the median
    assert outcome.cpu_ratio == 1


def test_processor_ratio_of_nothing_is_nan():
    assert np.isnan(Duel(((Turn(1, 1), Turn(1, 0)),)).cpu_ratio)


def test_pace():
    pace = Pace(rounds=11, turn=0.1, limit=30)
    assert [pace.calls(seconds) for seconds in (1e-9, 0.05, 3)] == [2000, 2, 1]
    assert pace.pairs((0.01, 0.01)) == 11
    assert pace.pairs((1, 1)) == 5
    assert pace.pairs((10, 10)) == 3
    assert Pace(rounds=2).pairs((100, 100)) == 2


def test_take_turn_calls_twice_untimed():
    count = []
    assert take_turn(lambda: count.append(1) or time.sleep(0.01), 3).wall >= 0.01
    assert len(count) == 5


@pytest.mark.parametrize("suite", SUITES)
def test_suites_name_contenders(suite):
    for each in SUITES[suite]():
        assert each.ours in contenders()
        assert isinstance(each, Memory) or each.theirs in contenders()
        assert each.case.at(64).shape[-2] == 64
        small = each.smaller()
        assert Case.from_json(small.case.to_json()) == small.case
        assert small.target is None


def test_curves_name_contenders():
    assert set(LONGEST) <= set(contenders())
    assert "tiles" not in DEFAULT


@pytest.mark.parametrize("suite", borders.BORDERS)
def test_borders_name_contenders_and_reach_their_number_of_scores(suite):
    library, families = borders.BORDERS[suite]()
    assert {f"ours, {library}, {kernel}" for kernel in borders.KERNELS[library]} <= set(contenders())
    for family in families:
        for exponent in borders.EXPONENTS:
            case = family(2**exponent)
            scores = np.prod(case.shape[:3]) * case.kv_shape[2]
            assert scores == pytest.approx(2**exponent, rel=0.1)
            assert Case.from_json(case.to_json()) == case


def test_a_line_of_borders():
    line = borders.Line(SMALL, 2**9, {"dense": 0.002, "tiled": 0.001}, auto="dense")
    assert (line.fastest, line.loss) == ("tiled", 2)
    assert borders.cells(line) == ["(1,2,16,8)", "2^9", "2.000", "1.000", "", "tiled", "dense", "2.00"]
    reason = borders.cells(borders.Line(SMALL, 2**9, {}, problem="not installed: nobody_has_it"))
    assert len(reason) == len(borders.COLUMNS)
    assert "not installed" in reason[2]


def test_borders_ask_for_the_choice():
    assert borders.chosen("NumPy", SMALL) == "dense"
    assert borders.chosen("NumPy", USUAL) == "tiled"


def test_wide_values():
    case = Case((1, 2, 16, 8), value_width=4)
    assert [x.shape for x in case.inputs()] == [(1, 2, 16, 8), (1, 2, 16, 8), (1, 2, 16, 4)]
    assert str(case) == "(1,2,16,8) values 4 wide"
    assert Case.from_json(case.to_json()) == case


def test_options_are_converted():
    class Foreign:
        def __init__(self, array):
            self.array = array

    assert isinstance(Case((1, 2, 16, 8), option="boolean mask").options(Foreign)["mask"], Foreign)
    assert Case(causal=True).options(Foreign) == {"is_causal": True}


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="two contenders are called 'torch SDPA'"):
        contender("torch SDPA")(lambda case: None)


def test_absent(monkeypatch):
    monkeypatch.setitem(contenders(), "nobody", type(find("usual formula"))("nobody", print, ("nobody_has_it",)))
    assert absent("usual formula") is None
    assert absent("nobody", "usual formula") == "not installed: nobody_has_it"
    row = Comparison(SMALL, "usual formula", "nobody").run(Workers(), Pace())
    assert cells(row)[3] == "not installed: nobody_has_it"
    assert not row.failed


@pytest.mark.parametrize("option", OPTIONS)
def test_case_options_work(option):
    case = Case((1, 2, 64, 8), option=option, block_size=16)
    assert flash_attention(*case.inputs(), **case.options()).shape == case.shape
    assert option in str(case)


def test_case():
    case = Case((1, 4, 1, 8), kv_heads=2, kv_length=64, causal=True, factor=30, window=3, tile=(8, 8))
    assert [x.shape for x in case.inputs()] == [(1, 4, 1, 8), (1, 2, 64, 8), (1, 2, 64, 8)]
    assert Case.from_json(case.to_json()) == case
    assert str(case) == "(1,4,1,8) on (1,2,64,8) causal window 3 scores x 30 tile 8 x 8"
    scores = Case((1, 1, 256, 64), factor=30).inputs()
    assert (scores[0] @ scores[1].mT / 8).std() == pytest.approx(30, rel=0.1)


@pytest.mark.parametrize("causal", [False, True])
def test_formula(causal):
    case = Case((1, 2, 16, 8), causal=causal)
    output, _ = usual_attention(np, *case.inputs(), is_causal=causal)
    np.testing.assert_allclose(output, flash_attention(*case.inputs(), is_causal=causal), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["gated", "delta", "gated_delta"])
def test_the_loop_over_chunks(rule):
    pytest.importorskip("torch")
    case = Case((1, 2, 128, 8), causal=True)
    expected, ours, loop = (
        np.asarray(find(name).call(case)())
        for name in (f"ours, NumPy, {rule}", f"ours, torch, {rule}", f"torch loop, {rule}")
    )
    for output in (ours, loop):
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_memory_probe_sees_what_a_call_allocates():
    assert peak_memory(lambda: np.ones(40 * MIB, np.uint8)) == pytest.approx(40 * MIB, rel=0.1)


def test_memory_in_a_fresh_process():
    output = 4 * 8 * 2048 * 64
    assert output <= extra_memory("usual formula", Case((1, 8, 2048, 64))) < 2**30
    with pytest.raises(ContenderError, match=r"ValueError: .*tile"):
        extra_memory("ours, NumPy", Case((1, 2, 16, 8), tile=(-1, -1)))


def test_workers_answer_and_report_errors():
    with Workers() as workers:
        assert workers["usual formula"].turn(SMALL, 2).wall > 0
        with pytest.raises(ContenderError, match=r"ValueError: .*tile"):
            workers["ours, NumPy"].turn(Case((1, 2, 16, 8), tile=(-1, -1)), 1)
        assert workers["ours, NumPy"].turn(SMALL, 1).cpu > 0


def test_a_comparison_and_its_row():
    with Workers() as workers:
        row = Comparison(SMALL, "ours, NumPy", "usual formula", 1e9).run(workers, Pace(2, turn=0.001))
    assert row.met
    assert len(cells(row)) == len(COLUMNS)


def test_means_follow_their_group():
    rows = [Row(case, "a", "b", "full", value, cpu_ratio=1, target=3) for case, value in [("x", 2.0), ("y", 8.0)]]
    *same, mean = with_means(rows)
    assert same == rows
    assert rows[0].met is None
    assert (mean.value, mean.met, mean.case) == (pytest.approx(4), False, "geometric mean, full")


def test_markdown_and_table():
    rows = [Row("x", "a", "b", value=1.234, unit="MiB", target=2), Row("y", "a", problem="not installed: z")]
    assert "| x | a | b | 1.23 MiB |  | 2.00 MiB | yes |  |  |" in markdown(rows)
    assert table("name", rows).row_count == 2
    assert "numpy" in environment()


def test_sections_are_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n## a\n\nold\n\n## b\n\nkept\n")
    write_section("a", "new", page)
    write_section("c", "added", page)
    assert page.read_text() == "# Title\n\n## a\n\nnew\n\n## b\n\nkept\n\n## c\n\nadded\n"


def test_a_page_is_begun(tmp_path):
    page = tmp_path / "page.md"
    write_section("a", "new", page)
    title, _, introduction, *_ = page.read_text().splitlines()
    assert title == f"# {machine()}"
    assert introduction
    assert "## a\n\nnew\n\n## Read next\n" in page.read_text()


def test_machines_have_file_names():
    assert file_name("Intel, AVX-512") == "intel_avx512"
    assert file_name("arm64") == "arm64"
    assert re.fullmatch(r"\w+", file_name(machine()))


def test_figures_do_not_change_with_the_date(tmp_path):
    curves = [
        Curve("ours, NumPy", {256: 1.0, 512: 4.0}, {256: 1.0, 512: 2.0}),
        Curve("absent", {}, {}, "not installed"),
    ]
    first = [path.read_bytes() for path in draw(curves, tmp_path)]
    assert first == [path.read_bytes() for path in draw(curves, tmp_path)]
    assert {path.name for path in tmp_path.iterdir()} == {"time.svg", "memory.svg"}


def test_every_contender_has_a_marker_of_its_own():
    assert len(set(MARKERS)) == len(MARKERS) >= len(LONGEST)


def test_a_ring_is_compared_with_one_process_and_traced():
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    lines = list(ring.measure(Pace(rounds=1, turn=0.001), quick=True))
    assert [line.name for line in lines] == list(ring.KINDS)
    for line in lines:
        assert line.outcome.ratio > 0
        assert line.outcome.cpu_ratio > 0
        for rank in range(ring.RANKS):
            names = [event.what for event in line.events if event.rank == rank]
            # On its way before the first block; 2 n + 1 of the 4 n blocks of a causal zigzag.
            assert names.index("messages sent: step 1") < names.index("block 64 x 64")
            assert names.count("block 64 x 64") == 2 * ring.RANKS + 1
            assert names.count("block back 64 x 64") == (2 * ring.RANKS + 1) * line.name.endswith("gradients")
