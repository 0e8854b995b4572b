"""What the weights of attention are like, without the weights."""

from typing import NamedTuple, Unpack

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.modes import refuse_shards
from attention_xp._engine.kernels.statistics import statistics
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._engine.problem.problem import Problem
from attention_xp._public_types import Array, ArrayT, Generic, HeldT
from attention_xp.masks import Mask

__all__ = ["AttentionStatistics", "attention_statistics"]


class AttentionStatistics(NamedTuple, Generic[HeldT]):
    """What `attention_statistics` returns: arrays of at least float32.

    Attributes
    ----------
    lse : array
        ``(..., H, Sq)``: the logarithm of the sum of the exponentials of the scores, sinks included.
    max_score : array
        ``(..., H, Sq)``: the largest score.
    entropy : array
        ``(..., H, Sq)``: that of the weights, in nats.
    key_totals : array
        ``(..., H, Sk)``: the sum of the weights that a key receives.
    """

    lse: HeldT
    max_score: HeldT
    entropy: HeldT
    key_totals: HeldT


@with_options
def attention_statistics(
    query: ArrayT, key: ArrayT, mask: Array | Mask | None = None, **options: Unpack[AttentionOptions]
) -> AttentionStatistics[ArrayT]:
    r"""Return how sharp attention is and which keys it goes to, in memory linear in the lengths.

    .. math::

        \mathrm{lse}_i = \log \sum_j e^{s_{ij}}, \qquad
        \mathrm{entropy}_i = -\sum_j w_{ij} \log w_{ij}, \qquad
        \mathrm{total}_j = \sum_i w_{ij}, \qquad
        w_{ij} = e^{s_{ij} - \mathrm{lse}_i}

    with the scores :math:`s` of `scaled_dot_product_attention` after every option, and its weights :math:`w` before
    dropout. Sinks are in :math:`\mathrm{lse}`, and so make weights smaller; they are neither scores nor keys.

    Parameters
    ----------
    query : array
        ``(..., H, Sq, D)``, or ``(B, Sq, D)`` or ``(Sq, D)`` without heads.
    key : array
        ``(..., Hkv, Sk, D)``.
    mask : array or Mask, optional
        As in `scaled_dot_product_attention`. There is no value: the third argument is the mask.
    {options}

    Returns
    -------
    AttentionStatistics
        ``lse``, ``max_score`` and ``entropy`` ``(..., H, Sq)``, and ``key_totals`` ``(..., H, Sk)``, differentiable. A
        row that may attend nothing has a maximum of ``-inf`` and an entropy of 0, and its log-sum-exp is ``-inf``, or
        the sink where there is one.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit, if `rng` is given, since nothing is dropped, or if `impl` is ``"fused"``,
        since no library has a kernel for this. ``"dense"`` materialises the scores.

    Notes
    -----
    Of `tile`, the rows count: a block of rows meets all its keys at once.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import attention_statistics
    >>> x = np.zeros((4, 8))
    >>> found = attention_statistics(x, x, is_causal=True)
    >>> np.exp(found.entropy).round(2)  # as many keys as if each received the same
    array([1., 2., 3., 4.])
    >>> found.key_totals.round(2)
    array([2.08, 1.08, 0.58, 0.25])
    """
    check_options(attention_statistics, options)
    common_namespace(query=query, key=key)
    if options.get("rng") is not None:
        raise ValueError("rng cannot be given: statistics are those of the weights before dropout")
    value = key[..., : min(key.shape[-1], 1)] if key.ndim > 1 else key  # no more than the checks of a call need
    problem = Problem.of(query, key, value, mask, 0.0, options)
    if problem.impl == "fused":
        raise ValueError(
            "impl='fused' cannot compute this call: no library has a kernel for statistics; impl='dense' and impl='tiled' can"
        )
    refuse_shards(problem.xp)
    problem, context = sheltered(problem)
    with context:
        return AttentionStatistics(*statistics(problem))
