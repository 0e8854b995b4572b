"""Where the choice goes from one kernel to another; the figures behind it are in the benchmarks."""

import pytest

from attention_xp import explain, flash_attention
from attention_xp._engine.kernels import fused, tiled
from attention_xp._engine.kernels.choose import choose
from attention_xp._engine.plan import borders
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.walkers.numpy import at_once, few_rows

SMALL_HEADS = ((64, 12, 32, 32), (64, 12, 32, 32))
LONG = ((1, 8, 1024, 8), (1, 8, 1024, 8))
DECODING = ((1, 16, 1, 8), (1, 16, 20000, 8))
SHORT_GROUPED_DECODING = ((1, 32, 1, 128), (1, 8, 1024, 128))
LONG_GROUPED_DECODING = ((1, 32, 1, 128), (1, 8, 8192, 128))
GROUPED_DECODING = ((1, 32, 1, 8), (1, 8, 8192, 8))

CHOICES = [
    ("numpy", SMALL_HEADS, "dense"),
    ("numpy", LONG, "tiled"),
    ("numpy", DECODING, "dense"),
    ("torch", SMALL_HEADS, "dense"),
    ("torch", LONG, "tiled"),
    ("torch", ((1, 8, 300, 8), (1, 8, 300, 8)), "dense"),
    ("jax", SMALL_HEADS, "dense"),
    ("jax", LONG, "tiled"),
    ("jax", DECODING, "tiled"),
    ("strict", ((2, 4, 64, 8), (2, 4, 64, 8)), "dense"),
    ("strict", LONG, "tiled"),
]


def problem(library, query, key, value=None, **options):
    """A call of which nothing but the shapes matters."""
    xp = library.namespace()
    arrays = [xp.zeros(shape, dtype=xp.float32, device=library.device()) for shape in (query, key, value or key)]
    return Problem.of(*arrays, None, 0.0, options)


@pytest.mark.parametrize(("name", "shapes", "kernel"), CHOICES)
def test_tiles_or_the_formula(library, name, shapes, kernel):
    if library.library != name:
        pytest.skip(f"this is about {name}")
    assert choose(problem(library, *shapes, softcap=2.0), Wanted()) == kernel  # no guest has a soft cap
    assert choose(problem(library, *shapes, softcap=2.0), Wanted(weights=True)) == "dense"


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("shapes", "options", "has_kernels", "kernel"),
    [
        (LONG_GROUPED_DECODING, {}, True, "dense"),
        (LONG_GROUPED_DECODING, {"softcap": 2.0}, True, "dense"),
        (LONG_GROUPED_DECODING, {}, False, "tiled"),  # BLAS then copies the keys for every product
        # These skip what is excluded.
        (LONG_GROUPED_DECODING, {"window": (64, 0), "query_offset": 8191}, True, "tiled"),
        (((1, 32, 16, 128), (1, 8, 8192, 128)), {}, True, "tiled"),  # 64 rows of a product
        (((1, 32, 1, 2), (1, 8, 8192, 2)), {}, True, "tiled"),  # scores would take more memory than keys
    ],
)
def test_decoding_on_arrays(library, monkeypatch, shapes, options, has_kernels, kernel):
    monkeypatch.setattr(few_rows, "has_small_kernels", lambda: has_kernels)
    monkeypatch.setattr(at_once, "are_read_in_place", lambda problem: False)
    assert choose(problem(library, *shapes, **options), Wanted()) == kernel
    assert choose(problem(library, *shapes, **options), Wanted(weights=True)) == "dense"


@pytest.mark.backends("numpy")
def test_decoding_in_compiled_loops(library, monkeypatch):
    monkeypatch.setattr(few_rows, "has_small_kernels", lambda: False)
    for is_compiled, kernel in ((True, "dense"), (False, "tiled")):
        monkeypatch.setattr(at_once, "are_read_in_place", lambda problem, found=is_compiled: found)
        assert choose(problem(library, *LONG_GROUPED_DECODING), Wanted()) == kernel


def test_the_formula_never_needs_much_more_memory_than_the_input(library):
    """What is materialised grows with the length, not with its square."""
    for length in (2**11, 2**13):
        assert tiled.is_worthwhile(problem(library, (1, 1, length, 1), (1, 1, length, 1)), Wanted())


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    ("length", "width", "is_guest"), [(16, 8, True), (16, 4, True), (512, 8, True), (512, 4, False)]
)
def test_torch_has_no_kernel_for_unequal_widths(library, length, width, is_guest):
    shapes = (1, 8, length, 8), (1, 8, length, 8), (1, 8, length, width)
    assert fused.is_worthwhile(problem(library, *shapes), Wanted()) is is_guest
    assert (choose(problem(library, *shapes), Wanted()) == "fused") is is_guest


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    ("dtype", "has_unit", "length", "is_wide"),
    [
        ("float16", True, 256, True),
        ("bfloat16", True, 64, True),
        ("bfloat16", True, 256, False),
        ("bfloat16", False, 256, True),
    ],
)
def test_torch_takes_gradients_in_32_bits_where_16_are_slower(library, monkeypatch, dtype, has_unit, length, is_wide):
    """What autograd has kept tells in which dtype the kernel computed."""
    monkeypatch.setattr(borders, "has_bfloat16_products", lambda: has_unit)
    torch = pytest.importorskip("torch")
    x = torch.ones((1, 2, length, 7 + has_unit), dtype=getattr(torch, dtype))  # another width: no answer is known yet
    attend, records = {"scale": 0.5}, []
    for is_recorded in (False, True):
        output = flash_attention(x.clone().requires_grad_(is_recorded), x, x, **attend)
        assert output.dtype == x.dtype
        records.append(output.grad_fn)
    plain, recorded = records
    assert plain is None
    assert recorded.name().startswith("ToCopy") is is_wide


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    ("shapes", "options", "kernel", "with_gradients"),
    [
        (SHORT_GROUPED_DECODING, {}, "fused", "fused"),
        (LONG_GROUPED_DECODING, {}, "dense", "dense"),
        (((1, 16, 1, 128), (1, 16, 8192, 128)), {}, "fused", "fused"),
        (LONG_GROUPED_DECODING, {"key_lengths": 8000}, "dense", "dense"),  # a number cuts the keys off
        (LONG_GROUPED_DECODING, {"key_lengths": [8000]}, "tiled", "dense"),
        (SHORT_GROUPED_DECODING, {"key_lengths": [1000]}, "fused", "fused"),
        (SHORT_GROUPED_DECODING, {"is_causal": True, "query_offset": 1023}, "fused", "fused"),
        (LONG_GROUPED_DECODING, {"is_causal": True, "query_offset": 8191}, "tiled", "fused"),
        (((1, 8, 4, 64), (1, 8, 1024, 64)), {"is_causal": True, "query_offset": 1020}, "fused", "fused"),
    ],
)
def test_decoding_on_tensors(library, shapes, options, kernel, with_gradients):
    torch = pytest.importorskip("torch")
    made = {name: torch.asarray(x) if isinstance(x, list) else x for name, x in options.items()}
    query, key = (torch.zeros(shape) for shape in shapes)
    for is_recorded, expected in ((False, kernel), (True, with_gradients), (False, kernel)):
        assert explain(query.requires_grad_(is_recorded), key, key, **made).kernel == expected
