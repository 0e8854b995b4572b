"""The choice of a kernel: the first, in order, that can compute a problem and is a good choice for it."""

from typing import Any, Protocol

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.modes import refuse_shards
from attention_xp._backend.sharding import spec_of
from attention_xp._engine.kernels import dense, fused, tiled
from attention_xp._engine.kernels.meshes import is_automatic
from attention_xp._engine.problem.known_calls import known_call
from attention_xp._engine.problem.known_end import filled_to
from attention_xp._engine.problem.one_program import in_automatic_axes
from attention_xp._engine.problem.options import AttentionOptions
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._typing import Array

__all__ = ["OWN", "answers", "attend", "attend_call", "attend_step", "choose"]


class _Candidate(Protocol):
    """What a kernel is asked before it is chosen."""

    def refusal(self, problem: Problem, wanted: Wanted) -> str | None:
        """Return why it cannot compute the problem; ``None`` where it can."""

    def is_worthwhile(self, problem: Problem, wanted: Wanted) -> bool:
        """Return whether it is a good choice where it can."""


class _Kernel(_Candidate, Protocol):
    """A kernel of our own, which always has a result."""

    def attend(self, problem: Problem, wanted: Wanted) -> Attended:
        """Compute the problem."""

    def loops_of(self, problem: Problem, wanted: Wanted) -> str | None:
        """Return what compiles its loops, or why nothing does; ``None`` where it has none."""


OWN: dict[str, _Kernel] = {"tiled": tiled, "dense": dense}
_OUTPUT = Wanted()
KERNELS: dict[str, _Candidate] = {"fused": fused, **OWN}


def answers(problem: Problem, wanted: Wanted) -> dict[str, str | None]:
    """Return for each kernel why it cannot compute the problem; ``None`` where it can."""
    return {name: kernel.refusal(problem, wanted) for name, kernel in KERNELS.items()}


def choose(problem: Problem, wanted: Wanted) -> str:
    """Return the name of the kernel asked for, or of the best that can; `ValueError` says why one cannot."""
    if problem.impl == "auto":
        for name, kernel in KERNELS.items():
            if kernel.is_worthwhile(problem, wanted) and kernel.refusal(problem, wanted) is None:
                return name
    impl = "dense" if problem.impl == "auto" else problem.impl  # the last to be asked
    reason = KERNELS[impl].refusal(problem, wanted)
    if reason is not None:
        able = " and ".join(f"impl={name!r}" for name in reversed(OWN) if not KERNELS[name].refusal(problem, wanted))
        hint = f"; {able} can" if able else ""
        raise ValueError(f"impl={problem.impl!r} cannot compute this call: {reason}{hint}")
    return impl


def attend_call(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    dropout_rate: float,
    options: AttentionOptions,
    wanted: Wanted,
) -> Attended:
    """State a problem and compute it; a call of a known kind that is one call of a library's kernel goes there at once."""
    found = known_call(query, key, value, mask, dropout_rate, options)
    shortcut = found[2].get(wanted) if found[2] else None
    if shortcut is not None:
        return shortcut(query, key, value)  # type: ignore[no-any-return]
    return attend(Problem.of(query, key, value, mask, dropout_rate, options, found=found), wanted)


def attend_step(problem: Problem, wanted: Wanted = _OUTPUT) -> Attended:
    """Compute a problem of NumPy arrays, in most cases of few rows, of which no weights are wanted."""
    found = dense.attend_few_rows(problem, wanted) if problem.impl == "auto" else None
    return attend(problem, wanted) if found is None else found


def _attended(problem: Problem, weights: bool, lse: bool, name: str) -> Attended:
    return attend(problem, Wanted(weights, lse), name)


def attend(problem: Problem, wanted: Wanted, chosen: str | None = None) -> Attended:
    """Compute a problem with the kernel that was chosen, or else with the one asked for, or the best that can.

    Under torch's autocast, a kernel of torch narrows its products as it always does. Our own kernels switch autocast off:
    the problem says in which dtype they compute.
    """
    name = problem.once(choose, wanted) if chosen is None else chosen
    if is_automatic(problem, name):
        return in_automatic_axes(_attended, problem, *wanted, name, specs=spec_of(problem.query, -1))
    if name == "fused":
        result = fused.attend(problem, wanted)
        if result is not None:
            return result
        name = "tiled" if tiled.is_worthwhile(problem, wanted) else "dense"
    refuse_shards(problem.xp)
    problem, context = sheltered(problem)
    with context:
        found = OWN[name].attend(problem, wanted)
    if not wanted.weights:
        return found
    return found._replace(weights=filled_to(problem.xp, found.weights, problem.given_keys))
