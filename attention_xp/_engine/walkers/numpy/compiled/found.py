"""Whether the loops can be compiled here: they are imported by the first call that is large enough to pay for it."""

import math
import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import base_of, has_vector_powers
from attention_xp._engine.walkers.numpy.compiled.passes import Passes
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._typing import Array
from attention_xp.masks import LengthMask

__all__ = [
    "FEWEST_PACKED_ROWS",
    "FEWEST_PAIRS",
    "are_read_in_place",
    "have_steps",
    "lengths_of",
    "loops",
    "missing",
    "passes_of",
    "pay_for_loops",
    "steps_of",
]

FEWEST_PAIRS = 2**20  # pairs of query and key: importing takes as long as some hundred such calls
FEWEST_PACKED_ROWS = 64  # for which keys are copied into another order


def passes_of(problem: Problem, least: float = math.inf) -> Passes | None:
    """Return the compiled passes for a problem, powers of less than ``-least`` being 0; ``None`` where NumPy's own are taken."""
    compiled = None if _objection(problem) else loops()
    if compiled is None:
        return None
    is_natural = base_of(problem.xp).log_e == 1.0
    return Passes(compiled, problem.dtype, problem.dropout_rate, least=least, is_natural=is_natural)


def steps_of(problem: Problem) -> Steps | None:
    """Return the compiled tile steps for a problem; ``None`` where a step needs functions of Python, or is not compiled."""
    return problem.once(Steps) if have_steps(problem) else None


def have_steps(problem: Problem) -> bool:
    """Whether there are compiled tile steps for a problem, also for one of another library that NumPy can read."""
    return _are_worthwhile(problem) and loops() is not None


def _are_worthwhile(problem: Problem) -> bool:
    """Whether compiled steps can do what a problem asks for, and it is large enough."""
    needs_python = problem.score_mod is not None or not (problem.seed is None or problem.keys_count_up)
    return not needs_python and problem.query.shape[-2] >= FEWEST_PACKED_ROWS and not _is_small(problem)


def are_read_in_place(problem: Problem) -> bool:
    """Whether compiled steps read the keys of a few rows where they lie: these are many, and no bias or rule but lengths says more."""
    arrays = problem.key, problem.value
    if not _has_only_lengths(problem) or problem.addends or problem.score_mod is not None or problem.seed is not None:
        return False
    if not pay_for_loops(problem.key) or any(a.dtype != problem.dtype for a in arrays) or loops() is None:
        return False
    from attention_xp._engine.walkers.numpy.compiled.registers import WIDTH  # noqa: PLC0415  # imports numba

    return all(a.shape[-1] > 0 and a.shape[-1] * a.itemsize % WIDTH == 0 for a in arrays)


def _has_only_lengths(problem: Problem) -> bool:
    """Whether no rule excludes anything, or a single one the last keys of each batch item."""
    rules = problem.rules
    if len(rules) == 0:
        return True
    if len(rules) > 1 or type(rules[0]) is not LengthMask or not isinstance(rules[0].lengths, np.ndarray):
        return False
    has_items = len(problem.batch) == 1 and problem.heads is not None
    return has_items and problem.keys_count_up and isinstance(problem.key_offset, int | None)


def lengths_of(problem: Problem) -> list[int]:
    """Return how many of the first keys each batch item attends, where `are_read_in_place`."""
    Sk = problem.key.shape[-2]
    if not problem.rules:
        return [Sk] * math.prod(problem.batch)
    (rule,) = problem.rules
    ends = np.clip(rule.lengths.astype(np.int64) - (problem.key_offset or 0), 0, Sk)  # type: ignore[attr-defined]
    return np.broadcast_to(ends, problem.batch).tolist()  # type: ignore[no-any-return]


def pay_for_loops(keys: Array) -> bool:
    """Whether these are so many numbers that few rows on them are worth the import."""
    return bool(math.prod(keys.shape) >= 4 * FEWEST_PAIRS)


def missing(problem: Problem) -> str | None:
    """Return why NumPy's own operations compute the tiles of a problem; ``None`` where loops are compiled."""
    objection = None if _are_worthwhile(problem) else _objection(problem)
    if objection or loops():
        return objection
    return "numba cannot be used" if find_spec("numba") else "numba is not installed"


def _objection(problem: Problem) -> str | None:
    """Return why single passes over tiles are not worth compiling, numba or not."""
    if np.dtype(problem.dtype) != np.float32 and has_vector_powers(problem.dtype):
        return f"NumPy is faster in {np.dtype(problem.dtype)} on this processor"
    return "the call is small" if _is_small(problem) else None


def _is_small(problem: Problem) -> bool:
    return math.prod((*problem.lead, problem.query.shape[-2], problem.key.shape[-2])) < FEWEST_PAIRS


@cache
def loops() -> ModuleType | None:
    """Import the loops and try one, where numba is installed; where that fails, say so once and go on without."""
    if find_spec("numba") is None:  # looked for on the disk, and therefore once
        return None
    try:
        from attention_xp._engine.walkers.numpy.compiled import loops  # noqa: PLC0415  # imports numba

        if loops.is_compiled():
            return loops
        problem = "NUMBA_DISABLE_JIT is set"
    except Exception as error:  # noqa: BLE001  # whatever numba finds wrong with NumPy, Python, the processor or a folder
        problem = f"{type(error).__name__}: {error}"
    warnings.warn(f"numba is installed and cannot be used, so that NumPy computes alone: {problem}", RuntimeWarning, 2)
    return None
