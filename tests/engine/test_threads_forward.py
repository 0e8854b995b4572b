"""NumPy's way forward: rows of a group in one product, and results that do not hang on which job comes first."""

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.problem import Problem
from attention_xp._engine.threads.rows import Worker
from attention_xp._engine.threads.walk import Walk
from attention_xp.masks import BlockMask, GlobalMask, SegmentMask


def numbers(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize(
    "mask",
    [
        SegmentMask(np.repeat([0, 1], 32)),
        BlockMask(np.random.default_rng(1).random((4, 7)) < 0.5, 20),
        GlobalMask(np.arange(63) == 5),
    ],
)
def test_a_rule_may_part_the_rows_of_a_group_that_share_one_product(mask):
    arrays = numbers((1, 6, 63, 8), (1, 2, 128, 8), (1, 2, 128, 8))
    tiled, dense = (
        flash_attention(*arrays, mask, query_offset=0, return_lse=True, impl=impl) for impl in ("tiled", "dense")
    )
    for x, y in zip(tiled, dense, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_what_one_job_finds_changes_no_other():
    query, key, value = numbers(*[(1, 1, 2048, 8)] * 3)
    key[..., 1501, :] *= 1000.0  # that no sample sees, nor the rows before
    problem = Problem.of(query, key, value, None, 0.0, {"is_causal": True, "impl": "tiled"})

    def output(order):
        walk = Walk(problem, 1, lse=True)
        with Worker.at_work(walk) as attend:
            for job in order(range(len(walk.jobs))):
                attend(job)
        assert walk.examined
        return walk.output

    np.testing.assert_array_equal(output(list), output(reversed))
