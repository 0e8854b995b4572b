"""Wrong calls of rotary position embeddings and of what belongs to them."""

import pytest

import attention_xp as ax
from attention_xp import rotary_cache, rotary_embedding as rotary
from tests._wrong import EITHER, Wrong, check


def cache(a, *shape):
    """Cosines and sines of ones."""
    return ax.RotaryCache(a(*shape), a(*shape))


def ids(a, *shape):
    """Positions of ones."""
    return a(*shape, dtype="int32")


ROTARY = {
    "list": Wrong(lambda a: rotary([[1.0, 2.0]]), TypeError, ("x ", "list")),
    "integers": Wrong(lambda a: rotary(ids(a, 5, 8)), TypeError, ("x ", "floating", "int32")),
    "one axis": Wrong(lambda a: rotary(a(8)), ValueError, ("x ", "(S, D)", "(..., H, S, D)", "(8,)")),
    "odd width": Wrong(lambda a: rotary(a(5, 7)), ValueError, ("7", "rotary_dim", "even", "(5, 7)")),
    "no width": Wrong(lambda a: rotary(a(5, 0)), ValueError, ("width 0", "(5, 0)")),
    "odd rotary_dim": Wrong(lambda a: rotary(a(5, 8), rotary_dim=3), ValueError, ("rotary_dim", "even", "3")),
    "no rotary_dim": Wrong(lambda a: rotary(a(5, 8), rotary_dim=0), ValueError, ("rotary_dim", "0")),
    "wide rotary_dim": Wrong(lambda a: rotary(a(5, 8), rotary_dim=10), ValueError, ("rotary_dim", "10", "(5, 8)")),
    "fractional rotary_dim": Wrong(lambda a: rotary(a(5, 8), rotary_dim=4.0), TypeError, ("rotary_dim", "float")),
    "base of zero": Wrong(lambda a: rotary(a(5, 8), base=0), ValueError, ("base", "positive")),
    "base of a kind": Wrong(lambda a: rotary(a(5, 8), base="big"), TypeError, ("base", "str")),
    "interleaved of a kind": Wrong(lambda a: rotary(a(5, 8), interleaved=1), TypeError, ("interleaved", "int")),
    "scaling of a kind": Wrong(lambda a: rotary(a(5, 8), scaling=2.0), TypeError, ("scaling", "float")),
    "scaling that is a class": Wrong(
        lambda a: rotary(a(5, 8), scaling=ax.LinearScaling), TypeError, ("scaling", "type")
    ),
    "positions of a list": Wrong(lambda a: rotary(a(5, 8), [0, 1, 2, 3, 4]), TypeError, ("positions", "list")),
    "floating positions": Wrong(lambda a: rotary(a(5, 8), a(5)), TypeError, ("positions", "integer", "float32")),
    "foreign positions": Wrong(lambda a: rotary(a(5, 8), a.foreign(5)), TypeError, ("one array library", "positions")),
    "positions without axes": Wrong(lambda a: rotary(a(5, 8), ids(a)), ValueError, ("positions", "(..., S)", "()")),
    "positions of another length": Wrong(
        lambda a: rotary(a(2, 5, 8), ids(a, 4)), ValueError, ("positions", "(4,)", "(2, 5)", "(2, 5, 8)")
    ),
    "one position for all": Wrong(lambda a: rotary(a(2, 5, 8), ids(a, 1)), ValueError, ("positions", "(1,)")),
    "positions of another batch": Wrong(
        lambda a: rotary(a(2, 3, 5, 8), ids(a, 3, 5)), ValueError, ("positions", "(3, 5)", "(2, 5)", "(2, 3, 5, 8)")
    ),
    "positions with a heads axis": Wrong(
        lambda a: rotary(a(2, 3, 5, 8), ids(a, 2, 1, 5)), ValueError, ("positions", "(2, 1, 5)")
    ),
    "positions that enlarge": Wrong(lambda a: rotary(a(5, 8), ids(a, 2, 5)), ValueError, ("positions", "(2, 5)")),
    "sections of a kind": Wrong(
        lambda a: rotary(a(5, 8), ids(a, 2, 5), sections=4), TypeError, ("sections", "int")
    ),
    "sections of another sum": Wrong(
        lambda a: rotary(a(5, 8), ids(a, 2, 5), sections=(4, 4)), ValueError, ("sections", "4", "(4, 4)")
    ),
    "an empty section": Wrong(
        lambda a: rotary(a(5, 8), ids(a, 2, 5), sections=(4, 0)), ValueError, ("sections[1]", "0")
    ),
    "sections without positions": Wrong(
        lambda a: rotary(a(5, 8), sections=(2, 2)), ValueError, ("sections", "positions", "(2, 2)")
    ),
    "sections without axes": Wrong(
        lambda a: rotary(a(5, 8), ids(a, 5), sections=(2, 2)), ValueError, ("positions", "(axes, ..., S)", "(5,)")
    ),
    "axes without sections": Wrong(
        lambda a: rotary(a(5, 8), ids(a, 3, 5), sections=(2, 2)), ValueError, ("positions", "2", "(3, 5)")
    ),
    "axial without sections": Wrong(
        lambda a: rotary(a(5, 8), ids(a, 2, 5), axial=True), ValueError, ("axial", "sections")
    ),
    "axial of a kind": Wrong(lambda a: rotary(a(5, 8), axial=2), TypeError, ("axial", "int")),
}  # fmt: skip

CACHE = {
    "cache of a kind": Wrong(lambda a: rotary(a(5, 8), cache=(a(5, 4), a(5, 4))), TypeError, ("cache", "tuple")),
    "cache of lists": Wrong(
        lambda a: rotary(a(5, 8), cache=ax.RotaryCache([[1.0]], [[1.0]])), TypeError, ("cache.cos", "list")
    ),
    "cache of integers": Wrong(
        lambda a: rotary(a(5, 8), cache=ax.RotaryCache(ids(a, 5, 4), a(5, 4))), TypeError, ("cache.cos", "int32")
    ),
    "cache of another library": Wrong(
        lambda a: rotary(a(5, 8), cache=ax.RotaryCache(a.foreign(5, 4), a.foreign(5, 4))), TypeError, ("cache.cos",)
    ),
    "cache of two shapes": Wrong(
        lambda a: rotary(a(5, 8), cache=ax.RotaryCache(a(5, 4), a(5, 3))), ValueError, ("(5, 4)", "(5, 3)")
    ),
    "cache of one axis": Wrong(lambda a: rotary(a(5, 8), cache=cache(a, 4)), ValueError, ("cache", "(4,)")),
    "cache too wide": Wrong(lambda a: rotary(a(5, 8), cache=cache(a, 5, 5)), ValueError, ("10", "(5, 8)")),
    "cache of another width": Wrong(
        lambda a: rotary(a(5, 8), rotary_dim=6, cache=cache(a, 5, 4)), ValueError, ("rotary_dim", "6", "8")
    ),
    "cache too short": Wrong(
        lambda a: rotary(a(5, 8), cache=cache(a, 4, 4)), ValueError, ("cache", "4 rows", "length 5")
    ),
    "cache of another batch": Wrong(
        lambda a: rotary(a(2, 5, 8), cache=cache(a, 3, 5, 4)), ValueError, ("cache", "(3, 5)", "(2, 5)")
    ),
    "positions in a cache of a batch": Wrong(
        lambda a: rotary(a(2, 5, 8), ids(a, 5), cache=cache(a, 2, 5, 4)), ValueError, ("positions", "(2, 5, 4)")
    ),
    "base with a cache": Wrong(
        lambda a: rotary(a(5, 8), base=100.0, cache=cache(a, 5, 4)), ValueError, ("base", "cache")
    ),
    "scaling with a cache": Wrong(
        lambda a: rotary(a(5, 8), scaling=ax.LinearScaling(2.0), cache=cache(a, 5, 4)), ValueError,
        ("scaling", "cache"),
    ),
    "axial with a cache": Wrong(
        lambda a: rotary(a(5, 8), axial=True, cache=cache(a, 5, 4)), ValueError, ("axial", "cache")
    ),
    "table of a list": Wrong(lambda a: rotary_cache([0, 1], 8), TypeError, ("positions", "list")),
    "table of floats": Wrong(lambda a: rotary_cache(a(5), 8), TypeError, ("positions", "float32")),
    "table of less than nothing": Wrong(lambda a: rotary_cache(-1, 8, xp=a.xp), ValueError, ("positions", "-1")),
    "table of odd width": Wrong(lambda a: rotary_cache(5, 7, xp=a.xp), ValueError, ("rotary_dim", "even", "7")),
    "table of two libraries": Wrong(
        lambda a: rotary_cache(ids(a, 5), 8, xp=a.xp), ValueError, ("xp", "positions")
    ),
    "table by sections without axes": Wrong(
        lambda a: rotary_cache(5, 8, sections=(2, 2), xp=a.xp), ValueError, ("sections", "positions")
    ),
    "table of integers": Wrong(lambda a: rotary_cache(5, 8, xp=a.xp, dtype="int32"), EITHER, ("dtype", "int32")),
}  # fmt: skip

SCALINGS = {
    "factor of zero": Wrong(lambda a: ax.LinearScaling(0.0), ValueError, ("factor", "positive")),
    "factor of a kind": Wrong(lambda a: ax.NTKScaling("2"), TypeError, ("factor", "str")),
    "endless factor": Wrong(lambda a: ax.DynamicNTKScaling(float("inf"), 4), ValueError, ("factor", "finite")),
    "no original positions": Wrong(
        lambda a: ax.DynamicNTKScaling(2.0, 0), ValueError, ("original_max_positions", "0")
    ),
    "fractional original positions": Wrong(
        lambda a: ax.YarnScaling(2.0, 8.0), TypeError, ("original_max_positions", "float")
    ),
    "swapped betas": Wrong(lambda a: ax.YarnScaling(2.0, 8, 1, 32), ValueError, ("beta_fast", "beta_slow", "32")),
    "truncate of a kind": Wrong(lambda a: ax.YarnScaling(2.0, 8, truncate=None), TypeError, ("truncate",)),
    "mscale of a kind": Wrong(lambda a: ax.YarnScaling(2.0, 8, mscale="1"), TypeError, ("mscale", "str")),
    "base of one": Wrong(
        lambda a: rotary(a(5, 8), base=1.0, scaling=ax.YarnScaling(2.0, 8)), ValueError, ("base", "1", "YarnScaling")
    ),
    "swapped factors": Wrong(
        lambda a: ax.Llama3Scaling(8.0, 4.0, 1.0, 8192), ValueError, ("high_freq_factor", "low_freq_factor", "4")
    ),
    "factors that are one": Wrong(
        lambda a: ax.LongRopeScaling(1.0, 2.0, 8), TypeError, ("short_factor", "sequence", "float")
    ),
    "a factor of zero": Wrong(
        lambda a: ax.LongRopeScaling([1.0, 0.0], [1.0, 2.0], 8), ValueError, ("short_factor[1]", "positive")
    ),
    "factors of another number": Wrong(
        lambda a: rotary(a(5, 8), scaling=ax.LongRopeScaling([1.0] * 4, [1.0] * 3, 8)), ValueError,
        ("long_factor", "4", "3"),
    ),
}  # fmt: skip

OTHERS = {
    "image of another size": Wrong(
        lambda a: ax.axial_rotary_embedding(a(2, 5, 8), 2, 3), ValueError, ("height * width", "6", "(2, 5, 8)")
    ),
    "image of no width": Wrong(
        lambda a: ax.axial_rotary_embedding(a(6, 6), 2, 3), ValueError, ("multiple of 4", "6", "(6, 6)")
    ),
    "image without axes": Wrong(lambda a: ax.axial_rotary_embedding(a(6), 2, 3), ValueError, ("x ", "(6,)")),
    "fractional height": Wrong(
        lambda a: ax.axial_rotary_embedding(a(6, 8), 2.0, 3), TypeError, ("height", "float")
    ),
    "permutation of a list": Wrong(
        lambda a: ax.permute_rotary_weights([1.0], 1, to="half"), TypeError, ("w ", "list")
    ),
    "permutation to nowhere": Wrong(
        lambda a: ax.permute_rotary_weights(a(8), 2, to="gptj"), ValueError, ("to ", "interleaved", "half", "gptj")
    ),
    "permutation of other heads": Wrong(
        lambda a: ax.permute_rotary_weights(a(5, 8), 3, to="half"), ValueError, ("divisible", "num_heads", "(5, 8)")
    ),
    "permutation of odd heads": Wrong(
        lambda a: ax.permute_rotary_weights(a(6), 2, to="half"), ValueError, ("rotary_dim", "even", "3")
    ),
    "permutation beyond the head": Wrong(
        lambda a: ax.permute_rotary_weights(a(8), 2, to="half", rotary_dim=6), ValueError, ("rotary_dim", "6", "(8,)")
    ),
    "permutation of no axis": Wrong(
        lambda a: ax.permute_rotary_weights(a(8), 2, to="half", axis=1), ValueError, ("axis", "1", "(8,)")
    ),
    "permutation of no axis from the end": Wrong(
        lambda a: ax.permute_rotary_weights(a(8), 2, to="half", axis=-2), ValueError, ("axis", "-2")
    ),
    "slopes of no heads": Wrong(lambda a: ax.alibi_slopes(0, xp=a.xp), ValueError, ("num_heads", "0")),
    "slopes of half a head": Wrong(lambda a: ax.alibi_slopes(1.5, xp=a.xp), TypeError, ("num_heads", "float")),
    "slopes that are no numbers": Wrong(
        lambda a: ax.alibi_slopes(4, xp=a.xp, dtype="bool"), EITHER, ("dtype", "bool")
    ),
}  # fmt: skip

WRONG = ROTARY | CACHE | SCALINGS | OTHERS


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_call(library, wrong):
    check(wrong, library)


@pytest.mark.backends("strict")
@pytest.mark.parametrize("part", ["positions", "cache"])
def test_arrays_on_another_device(library, xp, make, part):
    there = {"device": xp.Device("CPU_DEVICE")}
    given = xp.zeros(5, dtype=xp.int32, **there) if part == "positions" else rotary_cache(5, 8, xp=xp, **there)
    with pytest.raises(ValueError, match=rf"{part}.*one device"):
        rotary(make([[1.0] * 8] * 5), **{part: given})
