"""The sizes from which one kernel is faster than another, as they were measured.

The figures come from ``python -m benchmarks borders_numpy borders_torch borders_jax``, which prints the fastest kernel for
a series of sizes beside the one that was chosen. Run it again when a kernel changes.
"""

import math
from typing import NamedTuple

from attention_xp._backend.dtypes import NARROW, dtype_name
from attention_xp._backend.libraries import library_name
from attention_xp._backend.modes import is_recorded
from attention_xp._backend.processor import has_bfloat16_products
from attention_xp._backend.sizes import is_open
from attention_xp._engine.plan.host import is_for_numpy, may_need_gradients
from attention_xp._engine.plan.one_array import is_small
from attention_xp._engine.plan.patterns import grain
from attention_xp._engine.plan.tile_sizes import FOLD
from attention_xp._engine.problem.problem import Problem

__all__ = [
    "formula_is_faster",
    "rules_are_faster_as_array",
    "sdpa_is_faster",
    "sdpa_is_faster_wide",
    "sdpa_is_slow_for_few_rows",
]


class _Border(NamedTuple):
    """The formula is faster than tiles if one of three sizes is below these."""

    of_a_job: int  # scores of one head, or of the heads that share one product
    in_all: int  # scores of all heads; does not count where few queries share keys, for reading the keys takes the time
    rows: int = 0  # of a product, inclusive: with so few rows, scores take no more memory than keys


_BORDERS = {
    "numpy": _Border(2**15, 3 * 2**17, rows=1),  # handing out a job takes 0.1 ms, whatever its size
    "torch": _Border(2**16, 2**21),  # what fits into one tile, and what costs little memory
    "jax": _Border(2**13, 2**14),
}
_UNMEASURED = _Border(2**16, 2**16)  # cupy, strict
# Scores, and numbers of all keys, from which NumPy's tiles are faster on torch's tensors under rules.
_RULED = 2**17, 2**18
_FEW_ROWS = 32  # of a key/value head
# Numbers of all keys from which, for few rows, a copy without padding is slower than NumPy's tiles.
_PADDED_KEYS = 2**21
_LARGE_HEAD = 2**21  # bytes of the keys of a head, with which its values no longer stay in the second-level cache
_NARROW_GRADIENTS = 2**15  # scores of a head from which torch's gradients are faster in bfloat16, with a unit for it
_UNEQUAL_WIDTHS = 2**14  # scores from which torch's own way for Dv != D is slower than ours
_AS_ARRAY = 3 * 2**16  # scores of a head up to which torch's kernel is faster, with the rules as one array
_AS_ARRAY_BFLOAT16 = 2**22, 2**21  # with a unit for bfloat16: forward, and with gradients
_SPARSE = 4  # of which rules leave out so much that the border is so many times lower


def formula_is_faster(problem: Problem) -> bool:
    """Return whether the formula is faster than tiles, and its memory stays in proportion to that of the inputs."""
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    if is_open(Sq, Sk, *problem.lead):
        return False  # whatever the sizes turn out to be, tiles keep the memory in proportion
    shares = problem.group > 1 and Sq <= FOLD
    if problem.rules and is_for_numpy(problem) and not (shares and may_need_gradients(problem)):
        # The formula first looks for keys that are not finite, and copies them all.
        return _scores(problem) < _RULED[0] and math.prod(problem.key.shape) < _RULED[1]
    border = _BORDERS.get(library_name(problem.xp), _UNMEASURED)
    rows = Sq * problem.group if shares else Sq
    is_small = rows * Sk < border.of_a_job or (_scores(problem) < border.in_all and not shares)
    return rows <= border.rows or is_small or sdpa_is_slow_for_few_rows(problem)


def sdpa_is_faster(problem: Problem) -> bool:
    """Return whether torch's kernel is faster than ours: where ``Dv != D``, torch computes the plain formula."""
    return bool(problem.query.shape[-1] == problem.value.shape[-1]) or _scores(problem) < _UNEQUAL_WIDTHS


def rules_are_faster_as_array(problem: Problem) -> bool:
    """Return whether torch's kernel on the CPU, which gets all rules as one array, is faster than tiles, which leave pairs out.

    A kernel that computes all pairs wins where there are few, for tiles are planned and handed out one by one, and longer
    where the processor multiplies matrices in bfloat16, which tiles first widen.
    """
    if problem.query.device.type != "cpu" or is_recorded() or not is_small(problem):
        return False
    if any(addend.requires_grad for addend in problem.addends):
        return False  # torch would compute the formula
    with_gradients, is_wide = may_need_gradients(problem), problem.query.dtype == problem.dtype
    rows = problem.query.shape[-2] * problem.group
    if problem.group > 1 and rows <= _FEW_ROWS and is_wide and not with_gradients and _has_large_heads(problem):
        return False  # torch would read the keys for each query head
    most = _AS_ARRAY
    if dtype_name(problem.query.dtype) == "bfloat16" and has_bfloat16_products():
        most = _AS_ARRAY_BFLOAT16[with_gradients]
    if grain(problem.rules) < problem.query.shape[-2]:
        most //= _SPARSE
    return bool(problem.query.shape[-2] * problem.key.shape[-2] <= most)


def sdpa_is_slow_for_few_rows(problem: Problem) -> bool:
    """Return whether our kernels are faster than torch's on the CPU for a few rows on many keys, as in decoding.

    Torch's kernel computes the query heads of a group one by one, and reads their keys from memory for each; the formula
    computes them in one product. Where keys are padded, a copy without the padding has to be made for torch's kernel; tiles
    skip it. In 16 bits, ours would first have to widen all keys.
    """
    is_padded = any(rule._as_lengths is not None for rule in problem.rules)
    if not (is_padded if problem.rules else problem.group > 1) or problem.query.dtype != problem.dtype:
        return False
    if not is_for_numpy(problem):  # asked first: where torch compiles, comparing a length makes a graph for each answer
        return False
    if problem.query.shape[-2] * problem.group > _FEW_ROWS:
        return False
    if is_padded:
        return bool(math.prod(problem.key.shape) >= _PADDED_KEYS)
    return _has_large_heads(problem)


def sdpa_is_faster_wide(problem: Problem) -> bool:
    """Return whether torch's kernel and its gradients are faster on the CPU in 32 bits than in the 16 of the inputs.

    Backward in 16 bits takes up to sixteen times as long as in 32 where the processor multiplies no such matrices. Forward
    alone, 16 bits are as fast in float16 and faster in bfloat16.
    """
    kind = dtype_name(problem.query.dtype)
    if kind not in NARROW or problem.query.device.type != "cpu":
        return False
    if kind == "float16" or not has_bfloat16_products():
        return True
    return bool(problem.query.shape[-2] * problem.key.shape[-2] < _NARROW_GRADIENTS)


def _has_large_heads(problem: Problem) -> bool:
    """Return whether the keys of a head are read from memory each time."""
    numbers = problem.key.shape[-2] * problem.key.shape[-1]
    return bool(numbers * problem.dtype.itemsize >= _LARGE_HEAD)


def _scores(problem: Problem) -> int:
    scores: int = math.prod(problem.lead) * problem.query.shape[-2] * problem.key.shape[-2]
    return scores
