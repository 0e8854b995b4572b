"""What the constructors refuse, and how they say it."""

import numpy as np
import pytest

from attention_xp import flash_attention, masks


class Says(masks.Mask):
    """A rule that says something of every region."""

    def __init__(self, answer):
        self.answer = answer

    def allowed(self, region):
        return self.answer


def attend(mask, impl):
    """Attention of four positions under a mask."""
    x = np.ones((1, 2, 4, 8))
    return flash_attention(x, x, x, mask, impl=impl)


CALLS = {
    "window of a float": (lambda: masks.WindowMask(1.5, 0), TypeError, "window must be None, an int or a pair"),
    "negative window": (lambda: masks.WindowMask(-1, 0), ValueError, "window bounds must not be negative"),
    "stride of a float": (lambda: masks.StridedMask(2.0), TypeError, "stride must be an int, got float"),
    "stride of zero": (lambda: masks.StridedMask(0), ValueError, "stride must be at least 1, got 0"),
    "length of a list": (lambda: masks.LengthMask([1, 2]), TypeError, "lengths must be an int, got list"),
    "length of a bool": (lambda: masks.PrefixMask(True), TypeError, "length must be an int, got bool"),
    "length of floats": (
        lambda: masks.LengthMask(np.ones(2)), TypeError, "lengths must be an int or an integer array, got float64",
    ),
    "negative length": (lambda: masks.PrefixMask(-1), ValueError, "length must be at least 0, got -1"),
    "ids of a list": (lambda: masks.SegmentMask([0, 1]), TypeError, "query_ids must be an array, got list: np.asarray.query_ids., torch.as_tensor.query_ids. or"),
    "ids of floats": (lambda: masks.SegmentMask(np.ones(2)), TypeError, "query_ids must be an integer array"),
    "no axis of ids": (
        lambda: masks.SegmentMask(np.zeros(3, int), np.asarray(1)), ValueError, r"key_ids needs at least 1 axis.*got key_ids \(\)",
    ),
    "ids of two dtypes": (
        lambda: masks.SegmentMask(np.zeros(3, np.int32), np.zeros(3, np.int64)), TypeError,
        "key_ids is int64 but query_ids is int32: expected one dtype",
    ),
    "global of ints": (lambda: masks.GlobalMask(np.zeros(3, int)), TypeError, "is_global must be a boolean array, got int64"),
    "global of two axes": (
        lambda: masks.GlobalMask(np.zeros((1, 3), bool)), ValueError, r"is_global must have 1 axis.*got is_global \(1, 3\)",
    ),
    "layout of a list": (lambda: masks.BlockMask([[True]], 2), TypeError, "layout must be an array, got list"),
    "layout of ints": (lambda: masks.BlockMask(np.ones((2, 2), int), 2), TypeError, "layout must be a boolean array"),
    "layout of one axis": (
        lambda: masks.BlockMask(np.ones(2, bool), 2), ValueError, r"layout needs at least 2 axes.*got layout \(2,\)",
    ),
    "block of zero": (lambda: masks.BlockMask(np.ones((2, 2), bool), (2, 0)), ValueError, "block_size must be at least 1"),
    "block of a float": (lambda: masks.BlockMask(np.ones((2, 2), bool), 2.0), TypeError, "block_size must be an int"),
    "block of three": (
        lambda: masks.BlockMask(np.ones((2, 2), bool), (1, 2, 3)), ValueError, "block_size must be an int or a pair of int",
    ),
    "no function": (lambda: masks.FunctionMask(None), TypeError, "mask_mod must be callable as mask_mod"),
    "no batch": (lambda: masks.FunctionMask(min, batch=0), ValueError, "batch must be at least 1"),
    "function of ints": (
        lambda: masks.FunctionMask(lambda b, h, q, k: q - k).to_array(2, 2), TypeError,
        "mask_mod must return a boolean array, got int32",
    ),
    "function of nothing": (
        lambda: masks.FunctionMask(lambda b, h, q, k: None).density(2, 2), TypeError,
        "mask_mod must return a boolean array, got NoneType",
    ),
    "function of too many": (
        lambda: masks.FunctionMask(lambda b, h, q, k: np.ones((3, 3), bool)).to_array(2, 2), ValueError,
        r"mask_mod must broadcast to the scores of a region: expected \(2, 2\), got \(3, 3\)",
    ),
    "and": (lambda: masks.CausalMask() and masks.StridedMask(2), TypeError, "combine masks with &, | and ~"),
    "not": (lambda: not masks.CausalMask(), TypeError, "CausalMask.. is neither true nor false"),
    "Longformer": (lambda: masks.longformer_mask("wide"), TypeError, "window must be"),
    "BigBird window": (
        lambda: masks.bigbird_mask(4, 2, num_random=1, num_global=1, window_blocks=2, rng=0), ValueError,
        "window_blocks must be odd",
    ),
    "BigBird count": (
        lambda: masks.bigbird_mask(4, 2, num_random=-1, num_global=1, window_blocks=3, rng=0), ValueError,
        "num_random must be at least 0",
    ),
    "BigBird rng": (
        lambda: masks.bigbird_mask(4, 2, num_random=1, num_global=1, window_blocks=3, rng=None), TypeError,
        "rng must be an int or a numpy.random.Generator, got NoneType",
    ),
    "Sparse Transformer": (
        lambda: masks.sparse_transformer_mask(4, "local"), ValueError, 'kind must be "strided" or "fixed", got \'local\'',
    ),
    "Sparse Transformer stride": (lambda: masks.sparse_transformer_mask(0), ValueError, "stride must be at least 1"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CALLS.values(), ids=CALLS)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (np.zeros((4, 4)), TypeError, "Says.allowed must return a boolean array, got float64"),
        (np.ones((4, 4), int), TypeError, "Says.allowed must return a boolean array, got int64"),
        (1, TypeError, "Says.allowed must return a boolean array, got int"),
        (np.ones((3, 3), bool), ValueError, r"Says.allowed must broadcast .* got \(3, 3\)"),
    ],
)
def test_what_a_rule_of_the_user_says_is_checked(answer, error, text, impl):
    rule = Says(answer)
    for mask in (rule, ~rule, rule & masks.CausalMask(), rule | masks.CausalMask()):
        with pytest.raises(error, match=text):
            attend(mask, impl)
        with pytest.raises(error, match=text):
            mask.to_array(5, 5)


@pytest.mark.backends("torch", "jax", "cupy", "strict")
def test_arrays_of_two_libraries(make):
    with pytest.raises(TypeError, match="all arrays must belong to one array library"):
        masks.SegmentMask(make([0, 1]), np.asarray([0, 1]))


TRUTHS = {
    "and": lambda b, h, q_idx, kv_idx: q_idx >= kv_idx >= 0,
    "or": lambda b, h, q_idx, kv_idx: q_idx >= kv_idx or kv_idx >= 0,
    "not": lambda b, h, q_idx, kv_idx: not q_idx >= kv_idx,
    "a chain": lambda b, h, q_idx, kv_idx: 0 <= q_idx - kv_idx < 2,
    "if": lambda b, h, q_idx, kv_idx: q_idx >= kv_idx if kv_idx >= 0 else kv_idx >= 0,
}


@pytest.mark.parametrize("mask_mod", TRUTHS.values(), ids=TRUTHS)
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_arrays_that_are_asked_whether_they_are_true(library, make, impl, mask_mod):
    x = make(np.ones((1, 2, 4, 8)))
    with pytest.raises(TypeError, match="mask_mod asks whether an array is true: combine conditions on arrays with &"):
        flash_attention(x, x, x, masks.FunctionMask(mask_mod), impl=impl)


@pytest.mark.parametrize(
    "mask_mod", [lambda q_idx, kv_idx: q_idx >= kv_idx, lambda b, h, q, k, more: q >= k], ids=["2", "5"]
)
def test_functions_of_too_few_or_too_many_arguments(mask_mod):
    mask = masks.FunctionMask(mask_mod)
    for ask in (
        lambda: mask.to_array(3, 3),
        lambda: attend(mask, "dense"),
        lambda: attend(mask & masks.CausalMask(), "tiled"),
    ):
        with pytest.raises(
            TypeError, match=r"mask_mod must take four arguments, mask_mod\(b, h, q_idx, kv_idx\): .*argument"
        ):
            ask()


def test_other_errors_of_types_in_a_function_come_as_they_are():
    mask = masks.FunctionMask(lambda b, h, q_idx, kv_idx: q_idx >= None)
    with pytest.raises(TypeError, match="NoneType"):
        mask.to_array(3, 3)


def test_rules_of_the_user_are_told_too():
    class Near(masks.Mask):
        def allowed(self, region):
            return 0 <= region.q_idx - region.kv_idx < 2

    for ask in (lambda mask: mask.to_array(3, 3), lambda mask: mask.draw(64, 64), lambda mask: attend(mask, "tiled")):
        with pytest.raises(TypeError, match=r"Near\.allowed asks whether an array is true"):
            ask(Near())


def test_other_complaints_of_a_rule_come_as_they_are():
    def wrong(b, h, q_idx, kv_idx):
        raise ValueError("a value that is wrong")

    with pytest.raises(ValueError, match="a value that is wrong"):
        attend(masks.FunctionMask(wrong), "dense")
