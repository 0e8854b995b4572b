"""Boolean arrays as rules."""

import numpy as np
import pytest

from attention_xp import flash_attention, scaled_dot_product_attention, varlen_attention
from attention_xp.masks import ArrayMask, CausalMask, LengthMask, Mask, WindowMask
from tests._assertions import assert_close
from tests._inputs import inputs, normal
from tests.reference import attention

Q, K, V = inputs((2, 3, 6, 4), (2, 3, 7, 4))
TABLE = normal(2, 3, 6, 7, seed=5) > -0.5
CAUSAL = np.tri(6, 7, dtype=bool)
SHAPES = {
    "all": np.s_[:], "heads alike": np.s_[:, :1], "items alike": np.s_[0], "one": np.s_[0, 0], "padding": np.s_[:, :1, :1],
    "a line": np.s_[0, 0, 0],
}  # fmt: skip


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("at", SHAPES.values(), ids=SHAPES)
def test_it_is_the_array(library, make, impl, at):
    table = TABLE[at]
    output = flash_attention(
        make(Q), make(K), make(V), CausalMask() & make(table, "bool"), query_offset=0, impl=impl, tile=(4, 3)
    )
    assert_close(output, attention(Q, K, V, CAUSAL & table).output, library)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_in_any_combination(library, make, impl):
    array, lengths = make(TABLE[:, :1], "bool"), np.asarray([3, 5])
    mask = ~(CausalMask() & array) | (ArrayMask(TABLE[0, 0]) & LengthMask(lengths))
    valid = np.arange(7) < lengths[:, None, None, None]
    table = ~(CAUSAL & TABLE[:, :1]) | (TABLE[0, 0] & valid)
    output, weights = scaled_dot_product_attention(
        make(Q), make(K), make(V), mask, query_offset=0, impl=impl, tile=(4, 3)
    )
    expected = attention(Q, K, V, table)
    assert_close(output, expected.output, library)
    assert_close(weights, expected.weights, library)


def test_from_either_side(library, make):
    array = make(TABLE[0, 0], "bool")
    for mask in (CausalMask() & array, CausalMask() | array):
        assert isinstance(mask.right, ArrayMask)
        assert mask.right.array is array
    if library.like("strict"):
        return  # its arrays refuse everything else themselves
    for mask in (array & CausalMask(), array | CausalMask()):
        assert isinstance(mask, Mask)
        assert isinstance(mask.left, ArrayMask)
        assert isinstance(mask.right, CausalMask)


def test_without_heads(library, make):
    query, key, value = inputs((2, 6, 4), (2, 7, 4))
    mask = LengthMask(np.asarray([3, 5])) & make(TABLE[:, 0], "bool")
    valid = np.arange(7) < np.asarray([3, 5])[:, None, None]
    for given in (mask, LengthMask(np.asarray([3, 5])) & make(TABLE[:, :1], "bool")):
        output = flash_attention(make(query), make(key), make(value), given, impl="tiled")
        assert_close(output, attention(query, key, value, TABLE[:, 0] & valid).output, library)


def test_inside_a_rule_of_the_user():
    class All(Mask):
        def __init__(self, *parts):
            self.parts = list(parts)

        def allowed(self, region):
            keep = region.kv_idx >= 0
            for part in self.parts:
                keep = keep & part.pairs(region)
            return keep

    for impl in ("dense", "tiled"):
        output = flash_attention(Q, K, V, All(CausalMask(), ArrayMask(TABLE)), query_offset=0, impl=impl)
        np.testing.assert_allclose(output, attention(Q, K, V, CAUSAL & TABLE).output, atol=1e-12)


def test_it_is_aligned_with_rows_and_not_with_positions():
    output = flash_attention(Q, K, V, ArrayMask(TABLE) & WindowMask(20, 20), query_offset=5, impl="tiled")
    np.testing.assert_allclose(output, attention(Q, K, V, TABLE).output, atol=1e-12)


def test_as_an_array_and_as_a_picture():
    mask = ArrayMask(TABLE[0, 0])
    np.testing.assert_array_equal(mask.to_array(6, 7), TABLE[0, 0])
    np.testing.assert_array_equal((CausalMask() & TABLE).to_array(6, 7), CAUSAL & TABLE)
    assert (~mask).density(6, 7) == pytest.approx(1.0 - TABLE[0, 0].mean())
    assert len(str(CausalMask() | mask).splitlines()) == 7
    assert str(CausalMask() & np.asarray([True, False])).splitlines()[1:] == ["█·", "█·"]
    assert repr(CausalMask() & TABLE) == "(CausalMask() & ArrayMask(bool[2, 3, 6, 7]))"
    with pytest.raises(
        ValueError, match=r"ArrayMask\(bool\[6, 7\]\) says nothing of pairs beyond its 6 rows: a padding mask \(B, Sk\)"
    ):
        mask.to_array(9, 7)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"mask does not broadcast to the scores: expected mask .*got mask \(6, 9\)"):
        flash_attention(Q, K, V, ~ArrayMask(np.ones((6, 9), bool)))
    with pytest.raises(TypeError, match="array must be boolean to be a rule, got float64"):
        CausalMask() & np.ones((6, 7))
    with pytest.raises(TypeError, match="got int64: one of 0 and 1 goes in as array != 0"):
        CausalMask() & np.ones((6, 7), np.int64)
    with pytest.raises(TypeError, match="array must be an array, got list"):
        ArrayMask([[True]])
    with pytest.raises(ValueError, match="mask cannot hold an array of"):
        varlen_attention(Q[0], K[0, :, :6], V[0, :, :6], np.asarray([0, 3]), mask=CausalMask() & np.ones((3, 3), bool))
