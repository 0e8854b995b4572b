"""NumPy's forward pass: jobs of some heads and one block of rows, handed out to threads."""

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.forward_walk import ForwardWalk
from attention_xp._engine.walkers.numpy.forward_worker import ForwardWorker
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._typing import Array

__all__ = ["forward"]


def forward(problem: Problem, *, lse: bool, threads: int | None = None) -> tuple[Array, Array | None]:
    """Return output (..., H, Sq, Dv) and, where it is wanted, log-sum-exp (..., H, Sq).

    On so many threads, by default on as many as BLAS may have.
    """

    def visit(count: int) -> ForwardWalk:
        walk = ForwardWalk(problem, count, lse=lse)
        run_jobs(len(walk.jobs), lambda: ForwardWorker.at_work(walk), count)
        return walk

    done = with_blas_held_to_one(visit, threads)
    return done.output, done.lse
