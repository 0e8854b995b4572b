"""What is compared, and the targets: declarations only."""

import math
from collections.abc import Callable
from dataclasses import replace

from attention_xp._command.duel import Duel
from benchmarks.case import Case
from benchmarks.comparison import Comparison, Memory

__all__ = ["DEFAULT", "SUITES"]

SHAPES = [Case((1, 8, 2048, 64)), Case((4, 12, 512, 64)), Case((1, 4, 4096, 64)), Case((1, 8, 1024, 128))]
LARGE = 30.0  # standard deviation of large scores, by which the query is multiplied
TINY, USUAL, LONG = Case((2, 4, 16, 32)), Case((1, 8, 2048, 64)), Case((1, 8, 4096, 64))
NARROW = [replace(USUAL, option="softcap"), replace(USUAL, option="sinks"), replace(LONG, window=256)]
PATTERNS = [
    replace(LONG, option="blocks", block_size=128),
    replace(LONG, option="bigbird", block_size=64),
    replace(LONG, option="longformer"),
]


def _four(ours: str, theirs: str, target: float, group: str, *, causal: bool, factor: float = 1) -> list[Comparison]:
    cases = [replace(case, causal=causal, factor=factor) for case in SHAPES]
    return [Comparison(case, ours, theirs, target, group=group) for case in cases]


def numpy_full() -> list[Comparison]:
    """Full attention on NumPy arrays against those who compute the same."""
    return [
        *_four("ours, NumPy", "torch SDPA", 1.00, "full", causal=False),
        *_four("ours, NumPy", "torch SDPA", 1.12, "large scores", causal=False, factor=LARGE),
        *_four("ours, NumPy", "onnxruntime Attention", 1.08, "full", causal=False),
        *_four("ours, NumPy", "usual formula", 0.36, "full", causal=False),
        *_four("ours, NumPy", "Keras on NumPy", 0.10, "full", causal=False),
    ]


def numpy_causal() -> list[Comparison]:
    """Causal attention on NumPy arrays against those who compute the same."""
    return [
        *_four("ours, NumPy", "torch SDPA", 0.92, "causal", causal=True),
        *_four("ours, NumPy", "torch SDPA", 1.12, "causal, large scores", causal=True, factor=LARGE),
        *_four("ours, NumPy", "onnxruntime Attention", 0.70, "causal", causal=True),
        *_four("ours, NumPy", "usual formula", 0.36, "causal", causal=True),
    ]


def window() -> list[Comparison]:
    """Cost follows the allowed area: windows, blocks, global positions."""
    local = replace(LONG, causal=True, window=256)
    masks = [replace(LONG, option="blocks", block_size=256), *PATTERNS]
    return [
        Comparison(local, "ours, NumPy", "torch flex_attention, compiled", 1.0),
        Comparison(local, "ours, torch", "torch flex_attention, compiled"),
        _exponent(local.at(16384), "ours, NumPy"),
        *(_per_area(case, "ours, NumPy", 1.15) for case in masks),
    ]


def sparse() -> list[Comparison]:
    """What masks cost to what their density says, on the other libraries and with gradients."""
    names = ["ours, NumPy, gradients"]
    names += [f"ours, {library}{what}" for library in ("torch", "JAX") for what in ("", ", gradients")]
    return [_per_area(case, name) for name in names for case in PATTERNS]


def linear() -> list[Comparison]:
    """Linear attention against attention, its growth with the length, and its rules against a loop over chunks in torch."""
    case = Case((1, 8, 16384, 64), causal=True)
    rules = [(lib, rule) for lib in ("NumPy", "torch") for rule in ("gated", "delta", "gated_delta")]
    return [
        Comparison(case, "ours, NumPy, linear", "ours, NumPy", 0.1),
        _exponent(case, "ours, NumPy, linear"),
        *(Comparison(case, f"ours, {lib}, {rule}", f"ours, {lib}") for lib, rule in rules if rule != "gated"),
        *(
            Comparison(at, f"ours, {lib}, {rule}", f"torch loop, {rule}")
            for lib, rule in rules
            for at in (case.at(4096), case)
        ),
    ]


def _exponent(case: Case, name: str) -> Comparison:
    """Return the comparison of a case with an eighth of its length, as the exponent with which time grows."""
    return Comparison(
        *(case, name, name, 1.10, case.at(case.shape[-2] // 8)),
        value=lambda outcome, _: math.log(outcome.ratio, 8),
        label=": exponent of S, from an eighth of it",
    )


def _per_area(case: Case, name: str, target: float | None = None) -> Comparison:
    """Return the comparison of the time per allowed score with that of full attention."""
    return Comparison(
        *(case, name, name, target, replace(case, option=None)),
        value=lambda outcome, case: outcome.ratio / case.density(),
        label=" / (density x plain)",
    )


def memory() -> list[Memory]:
    """Peak memory beyond the input, output included."""
    case = Case((1, 8, 16384, 64))
    return [Memory(case, name, 48) for name in ("ours, NumPy", "ours, torch, tiled", "ours, JAX")]


def jax() -> list[Comparison]:
    """Jitted, on JAX arrays."""
    longest = [Case((1, 8, 8192, 64), causal=causal) for causal in (False, True)]
    return [
        *_four("ours, JAX", "jax.nn", 0.32, "full", causal=False),
        *_four("ours, JAX", "jax.nn", 0.32, "causal", causal=True),
        *(Comparison(case, "ours, JAX, compiling", "jax.nn, compiling", 2.5, label=": compiling") for case in longest),
    ]


def _microseconds(outcome: Duel, _case: Case) -> float:
    return 1e6 * outcome.difference


def torch() -> list[Comparison]:
    """What a call costs on top of the kernel of torch, which it ends in."""
    costs = [
        Comparison(TINY, f"ours, torch{what}", f"torch SDPA{what}", most, value=_microseconds, unit="µs")
        for what, most in (("", 10), (", gradients", 15))
    ]
    backward = [replace(USUAL, causal=causal) for causal in (False, True)]
    return [
        *costs,
        Comparison(USUAL, "ours, torch", "torch SDPA", 1.02),
        *(Comparison(case, "ours, torch, gradients", "torch SDPA, gradients", 1.03) for case in backward),
    ]


def gradients() -> list[Comparison | Memory]:
    """Forward and backward, and the peak memory beyond the input, output and gradients included."""
    ours, theirs = "ours, NumPy, gradients", "torch SDPA, gradients"
    return [
        *_four(ours, theirs, 0.95, "full", causal=False),
        *_four(ours, theirs, 0.95, "causal", causal=True),
        *_four(ours, theirs, 1.10, "large scores", causal=False, factor=LARGE),
        *_four("ours, JAX, gradients", "jax.nn, gradients", 0.5, "JAX, full", causal=False),
        *_four("ours, JAX, gradients", "jax.nn, gradients", 0.5, "JAX, causal", causal=True),
        Memory(Case((1, 8, 8192, 64)), ours, 64 + 4 * 16),
    ]


def narrow() -> list[Comparison]:
    """16 bits on torch's tensors against 32, and with gradients against torch's kernel in 16."""
    cases = [replace(case, causal=True, dtype=kind) for case in NARROW for kind in ("bfloat16", "float16")]
    kinds = [(case, f"ours, torch{what}") for what in ("", ", gradients") for case in cases]
    plain = [replace(USUAL, dtype=kind) for kind in ("bfloat16", "float16")]
    return [
        *(
            Comparison(case, ours, ours, 1.2, replace(case, dtype="float32"), label=" / float32")
            for case, ours in kinds
        ),
        *(
            Comparison(case, f"ours, torch{what}", f"torch SDPA{what}", 1.05)
            for what in ("", ", gradients")
            for case in plain
        ),
    ]


def decode() -> list[Comparison]:
    """One query on a long cache of keys and values, 32 heads on 8."""
    cases = [Case((1, 32, 1, 128), kv_heads=8, kv_length=length) for length in (8192, 2048, 512)]
    return [
        Comparison(cases[0], "ours, NumPy", "torch SDPA", 0.7),
        *(Comparison(case, "ours, torch", "torch SDPA", 1.05) for case in cases),
        Comparison(cases[0], "ours, torch, gradients", "torch SDPA, gradients", 0.7),
    ]


def caches() -> list[Comparison]:
    """A step of decoding, the append included, against attention on slices of the same lengths; pages in random order."""
    alone, grouped = Case((1, 16, 1, 64), kv_length=4096), Case((1, 32, 1, 64), kv_heads=8, kv_length=4096)
    small = [Case((4, 16, 1, 64), kv_length=512), *(Case((B, 9, 1, 64), kv_heads=3, kv_length=500) for B in (1, 4))]
    cases = [alone, replace(alone, shape=(4, 16, 1, 64)), grouped, *small]
    pages = [(case, size) for case in cases for size in (16, 64, 128)]
    scattered = [replace(case, kv_length=8192, block_size=size) for case in (alone, grouped) for size in (16, 64)]
    return [
        *(Comparison(case, "ours, NumPy, static cache", "ours, NumPy, slices", 1.1) for case in cases),
        *(
            Comparison(
                *(replace(case, block_size=size), "ours, NumPy, paged cache", "ours, NumPy, slices", 1.3),
                label=f", pages of {size}",
            )
            for case, size in pages
        ),
        *(
            Comparison(
                *(case, f"ours, NumPy, scattered pages{what}", f"ours, NumPy{what}"),
                label=f", pages of {case.block_size} in random order",
            )
            for what in ("", ", without numba")
            for case in scattered
        ),
    ]


def tiny() -> list[Comparison]:
    """The overhead of a call on tiny arrays, and the dense kernel on large ones."""
    return [
        *(Comparison(TINY, name, "usual formula", 2.5) for name in ("ours, NumPy", "ours, NumPy, with weights")),
        *(Comparison(USUAL, f"ours, NumPy, {kind}", "usual formula", 1.0) for kind in ("dense", "with weights")),
    ]


def options() -> list[Comparison]:
    """Each option against the plain call."""
    targets = {"softcap": 1.6, "float bias": 1.6, "boolean mask": 1.6, "sinks": 1.6, "dropout": 2.5}
    return [
        Comparison(replace(USUAL, option=name), "ours, NumPy", "ours, NumPy", target, USUAL, label=" / plain")
        for name, target in targets.items()
    ]


def loops() -> list[Comparison]:
    """What loops that numba compiles take of the time of NumPy's own operations, and of torch's kernel."""
    cases = [USUAL, replace(USUAL, causal=True), replace(USUAL, factor=5.0), replace(USUAL, factor=LARGE)]
    with_one = [replace(USUAL, option=name) for name in ("softcap", "float bias", "boolean mask", "dropout")]
    ours = "ours, NumPy, with numba", "ours, NumPy, without numba"
    both = "ours, NumPy, gradients, with numba", "ours, NumPy, gradients, without numba"
    return [
        *(Comparison(case, *ours) for case in [*cases, *with_one]),
        *(Comparison(case, *both) for case in (USUAL, with_one[-1])),
        *(Comparison(case, name, "torch SDPA") for case in cases[:3] for name in ours),
    ]


def tiles() -> list[Comparison]:
    """Other tile sizes against the chosen one; runs only when named."""
    sizes = {
        "ours, NumPy": [(384, 1024), (512, 512), (1024, 512)],
        "ours, JAX": [(512, 512), (512, 1024), (1024, 1024)],
    }
    plain = [(name, replace(USUAL, causal=causal)) for name in sizes for causal in (False, True)]
    return [
        Comparison(replace(case, tile=tile), name, name, their_case=case)
        for name, case in plain
        for tile in sizes[name]
    ]


SUITES: dict[str, Callable[[], list[Comparison] | list[Memory] | list[Comparison | Memory]]] = {
    suite.__name__: suite
    for suite in (
        numpy_full,
        numpy_causal,
        window,
        sparse,
        linear,
        memory,
        jax,
        torch,
        gradients,
        narrow,
        decode,
        caches,
        tiny,
        options,
        loops,
        tiles,
    )
}
DEFAULT = [name for name in SUITES if name != "tiles"]
