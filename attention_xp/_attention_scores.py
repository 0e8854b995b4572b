"""The scores of attention, after each step that makes them."""

import dataclasses
import math
from typing import Any, Literal, Unpack

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.modes import refuse_shards
from attention_xp._engine.problem.known_end import filled_to
from attention_xp._engine.problem.options import AttentionOptions, ScoreOptions, check_options, with_options
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.formula import scores_of_region
from attention_xp._public_types import Array, ArrayT
from attention_xp._scores.region import Region
from attention_xp.masks import Mask

__all__ = ["attention_scores"]

# For each stage the values with which the next step changes nothing. The scores of a stage are those of a problem that has
# these and the values of all later stages.
_LATER: dict[str, dict[str, Any]] = {
    "product": {"softcap": None},
    "capped": {"score_mod": None},
    "modified": {"addends": ()},
    "biased": {"rules": ()},
    "masked": {},
}
_STAGES = tuple(_LATER)
_EXCLUSIONS = ("is_causal", "window", "query_lengths", "key_lengths")


@with_options
def attention_scores(
    query: ArrayT,
    key: ArrayT,
    mask: Array | Mask | None = None,
    *,
    stage: Literal["product", "capped", "modified", "biased", "masked"] = "masked",
    **options: Unpack[ScoreOptions],
) -> ArrayT:
    r"""Return the scores of all pairs of query and key, after one of the steps that make them.

    .. math::

        s_1 = \mathrm{scale} \; Q K^T, \quad
        s_2 = c \tanh(s_1 / c), \quad
        s_3 = \mathrm{score\_mod}(s_2), \quad
        s_4 = s_3 + \mathrm{bias} + \mathrm{mask}

    .. math::

        s_5 = \begin{cases} s_4 & \text{where a pair is allowed} \\ -\infty & \text{elsewhere} \end{cases}

    The weights of `scaled_dot_product_attention` are the softmax of the last. The scores are materialised: this is for
    teaching, for tests, and for conventions that the options have no word for.

    Parameters
    ----------
    query : array
        ``(..., H, Sq, D)``, or ``(B, Sq, D)`` or ``(Sq, D)`` without heads. float16 and bfloat16 are
        computed in float32.
    key : array
        ``(..., Hkv, Sk, D)`` with as many axes as `query`.
    mask : array or Mask, optional
        As in `scaled_dot_product_attention`. There is no value: the third argument is the mask.
    stage : {"product", "capped", "modified", "biased", "masked"}, default: "masked"
        After which step, :math:`s_1` to :math:`s_5`. An option that is not given leaves the scores as they are.
    {options}

    Returns
    -------
    array
        ``(..., H, Sq, Sk)``, with dtype, library and device of `query`, differentiable. After ``"masked"``, what a mask,
        `is_causal`, `window` or a length excludes is ``-inf``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, or an option says nothing about scores, such as `sinks`.
    ValueError
        If a shape or a value does not fit, or there is no such `stage`.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import attention_scores, softmax
    >>> x = np.eye(3)
    >>> attention_scores(x, x, is_causal=True, scale=2.0)
    array([[  2., -inf, -inf],
           [  0.,   2., -inf],
           [  0.,   0.,   2.]])
    >>> softmax(attention_scores(x, x, is_causal=True)).round(2)
    array([[1.  , 0.  , 0.  ],
           [0.36, 0.64, 0.  ],
           [0.26, 0.26, 0.47]])
    >>> attention_scores(x, x, is_causal=True, scale=2.0, stage="product")
    array([[2., 0., 0.],
           [0., 2., 0.],
           [0., 0., 2.]])
    """
    check_options(attention_scores, options, ScoreOptions.__annotations__)
    if stage not in _STAGES:
        raise ValueError(f"stage must be one of {', '.join(map(repr, _STAGES))}, got {stage!r}")
    common_namespace(query=query, key=key)
    problem = _problem(query, key, mask, stage, options)
    refuse_shards(problem.xp)
    problem, context = sheltered(problem)
    with context:
        scores = scores_of_region(problem, Region.whole(problem), problem.query, problem.key)
    scores = as_dtype(problem.xp, scores, query.dtype)
    return filled_to(problem.xp, scores, problem.given_keys, value=-math.inf)  # type: ignore[no-any-return]


def _problem(query: Array, key: Array, mask: Any, stage: str, options: Any) -> Problem:
    """Return the problem whose scores are those of a stage: that without all that comes later."""
    value = key[..., :1] if key.ndim > 1 else key  # no more than the checks of a call need
    problem = Problem.of(query, key, value, mask, 0.0, options)
    if stage == "masked":
        return problem
    # Once more without exclusions: they cut off the keys that nobody attends.
    kept: AttentionOptions = {name: x for name, x in options.items() if name not in _EXCLUSIONS}  # type: ignore[assignment]
    problem = Problem.of(query, key, value, None if isinstance(mask, Mask) else mask, 0.0, kept)
    for later in _STAGES[_STAGES.index(stage) :]:
        problem = dataclasses.replace(problem, **_LATER[later])
    return problem
