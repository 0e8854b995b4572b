"""Biases that are refused, by their constructors or by attention, and how that is said."""

import pytest

from attention_xp.biases import AlibiBias, Bias, RelativePositionBias
from tests._wrong import Wrong, check


class Wide(Bias):
    def values(self, region):
        return region.xp.stack([region.floating(region.q_idx - region.kv_idx)] * 3)


class Integers(Bias):
    def values(self, region):
        return region.q_idx - region.kv_idx


class Number(Bias):
    def values(self, region):
        return 1.0


class Nothing(Bias):
    pass


def wrong(bias, error, *words, axes=4):
    return Wrong(lambda a: a.attend(axes, bias=bias(a)), error, words)


WRONG = {
    "a list": Wrong(lambda a: AlibiBias([0.5]), TypeError, ("slopes", "list")),
    "integer slopes": Wrong(lambda a: AlibiBias(a(4, dtype="int32")), TypeError, ("slopes", "int32")),
    "slopes of other items": wrong(
        lambda a: AlibiBias(a(3, 4)), ValueError, "slopes (H,) or (B, H), up to (2, 4)", "slopes (3, 4)"
    ),
    "slopes of too many axes": wrong(lambda a: AlibiBias(a(1, 2, 4)), ValueError, "up to (2, 4)", "slopes (1, 2, 4)"),
    "other heads": wrong(lambda a: AlibiBias(a(3)), ValueError, "slopes (H,) or (B, H), up to (2, 4)", "slopes (3,)", "(2, 4, 5, 8)"),
    "heads where there are none": wrong(
        lambda a: AlibiBias(a(2)), ValueError, "slopes (B, 1) with no heads axis, up to (2, 1)", "(2,)", axes=3
    ),
    "another library": wrong(lambda a: AlibiBias(_other(a)(4)), TypeError, "slopes", "library of the query"),
    "a table of integers": Wrong(lambda a: RelativePositionBias(a(32, 4, dtype="int32")), TypeError, ("table", "int32")),
    "a table of three axes": Wrong(
        lambda a: RelativePositionBias(a(32, 4, 1)), ValueError, ("table (num_buckets, H)", "(32, 4, 1)")
    ),
    "odd buckets": Wrong(lambda a: RelativePositionBias(a(31, 4)), ValueError, ("31 buckets", "even", "(31, 4)")),
    "few buckets": Wrong(lambda a: RelativePositionBias(a(2, 4)), ValueError, ("2 buckets", "4")),
    "short distances": Wrong(
        lambda a: RelativePositionBias(a(32, 4), max_distance=8), ValueError, ("max_distance", "8", "(32, 4)")
    ),
    "fractional distance": Wrong(
        lambda a: RelativePositionBias(a(32, 4), max_distance=8.5), TypeError, ("max_distance", "float")
    ),
    "direction": Wrong(lambda a: RelativePositionBias(a(32, 4), bidirectional=1), TypeError, ("bidirectional", "int")),
    "table of other heads": wrong(
        lambda a: RelativePositionBias(a(32, 8)), ValueError, "table (num_buckets, H) with H = 4", "table (32, 8)"
    ),
    "a class": wrong(lambda a: AlibiBias, TypeError, "bias"),
    "too many heads": wrong(lambda a: Wide(), ValueError, "Wide.values", "(3, "),
    "integers": wrong(lambda a: Integers(), TypeError, "Integers.values", "floating", "int32"),
    "a number": wrong(lambda a: Number(), TypeError, "Number.values", "float"),
    "no values": wrong(lambda a: Nothing(), NotImplementedError, "Nothing must define values(region)"),
    "no derivative": Wrong(
        lambda a: Nothing().vjp(None, None), NotImplementedError, ("Nothing must define vjp(region, grad_scores)",)
    ),
}  # fmt: skip


def _other(a):
    """The arrays of a library that is not NumPy, which serves every query."""
    return pytest.importorskip("array_api_strict" if a.library.package != "array_api_strict" else "torch").ones


@pytest.mark.parametrize("wrong_call", WRONG.values(), ids=WRONG)
def test_wrong_call(library, wrong_call):
    check(wrong_call, library)
