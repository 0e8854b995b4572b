"""Attention on arrays of Dask."""

from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

import dask.array as da

from attention_xp._checks.numbers import check_flag
from attention_xp._engine.kernels.gradients import derivative_refusal
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._public_types import Array
from attention_xp._statistics import AttentionStatistics
from attention_xp._vjp import AttentionGradients, check_like_rows
from attention_xp.distributed._dask.call import DaskCall
from attention_xp.distributed._dask.grid import as_dask, stand_in
from attention_xp.masks import Mask

__all__ = ["dask_attention", "dask_attention_statistics", "dask_attention_vjp"]


@overload
def dask_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    split_every: int = 4,
    return_lse: Literal[False] = False,
    **options: Unpack[AttentionOptions],
) -> da.Array: ...
@overload
def dask_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    split_every: int = 4,
    return_lse: Literal[True],
    **options: Unpack[AttentionOptions],
) -> tuple[da.Array, da.Array]: ...
@with_options
def dask_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    split_every: int = 4,
    return_lse: bool = False,
    **options: Unpack[AttentionOptions],
) -> Any:
    r"""Attend on arrays of Dask, which may be larger than memory, or spread over machines.

    .. math::

        \mathrm{lse}_i = \log \sum_p e^{\mathrm{lse}_{ip}}, \qquad
        \mathrm{output}_i = \sum_p e^{\mathrm{lse}_{ip} - \mathrm{lse}_i} \, \mathrm{output}_{ip}

    A task computes chunk :math:`i` of the query under chunk :math:`p` of the keys, and a tree of tasks merges them. Blocks that
    masks exclude are not in the graph. Nothing is computed before Dask is asked to.

    Parameters
    ----------
    query : dask array
        ``(..., H, Sq, D)``, or ``(B, Sq, D)`` or ``(Sq, D)`` without heads, in chunks of any sizes. Wherever a dask array is
        expected, one is made of an array of NumPy or CuPy, or of zarr.
    key : dask array
        ``(..., Hkv, Sk, D)``.
    value : dask array
        ``(..., Hkv, Sk, Dv)``.
    mask : dask array or Mask, optional
        Boolean, floating or a rule, as in `scaled_dot_product_attention`, of the whole. Rules exclude blocks where their
        `reach` can tell; what an array excludes is found out by the tasks.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``. With `rng`, an int, the draw is that of a call on the whole.
    split_every : int, default: 4
        How many partial results a task merges.
    return_lse : bool, default: False
        Whether to return the log-sum-exp as well.
    {options}

    Returns
    -------
    output : dask array
        ``(..., H, Sq, Dv)``, with the chunks and the dtype of `query`; its last axis is one chunk.
    lse : dask array
        ``(..., H, Sq)``, at least float32. Only with `return_lse`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, such as an array of another library or dtype.
    ValueError
        If a shape or a value does not fit, lengths of chunks are not known, or there is dropout without a seed.

    See Also
    --------
    dask_attention_vjp : The gradients.
    dask_attention_statistics : What the weights are like.

    Notes
    -----
    A worker holds a few chunks at a time, and each block takes so much work as one call of `flash_attention`: chunks of
    some thousand rows and keys keep workers busy. Arrays in options are cut into the chunks of query and key.
    What is read by several tasks is kept by Dask until the last of them is done, or spilled to disk by its distributed
    scheduler.

    References
    ----------
    Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021.

    Rocklin, "Dask: parallel computation with blocked algorithms and task scheduling", SciPy 2015.

    Examples
    --------
    >>> import dask.array as da
    >>> from attention_xp.distributed import dask_attention
    >>> x = da.ones((8, 1000, 16), chunks=(4, 250, 16))
    >>> output = dask_attention(x, x, x, is_causal=True)
    >>> output.shape, output.chunksize
    ((8, 1000, 16), (4, 250, 16))
    >>> bool(da.allclose(output, 1.0).compute())
    True
    """
    if options:
        check_options(dask_attention, options)
    check_flag("return_lse", return_lse)
    call = DaskCall.of(query, key, value, mask, dropout_rate, options, split_every)
    output, lse = call.attended()
    return (output, lse) if return_lse else output


@with_options
def dask_attention_vjp(
    query: Any,
    key: Any,
    value: Any,
    mask: Array | Mask | None = None,
    *,
    dropout_rate: float = 0.0,
    split_every: int = 4,
    **options: Unpack[AttentionOptions],
) -> tuple[da.Array, Callable[[Any], AttentionGradients[da.Array]]]:
    r"""Attend on arrays of Dask, and return the function that takes the gradient of the output to those of the arguments.

    .. math:: P = e^{S - \mathrm{lse}}, \quad dV = P^T dO, \quad dQ = \mathrm{scale} \, dS \, K, \quad dK = \mathrm{scale} \, dS^T Q

    as `attention_gradients` computes them block by block; the shares of the blocks are summed in trees.

    Parameters
    ----------
    query, key, value, mask
        As in `dask_attention`.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``. The gradients see the same draw.
    split_every : int, default: 4
        How many partial results a task merges or sums.
    {options}

    Returns
    -------
    output : dask array
        As of `dask_attention`.
    vjp : callable
        ``vjp(grad_output) -> AttentionGradients(query, key, value, mask, bias, sinks)``: dask arrays, each with the shape, dtype
        and chunks of its argument; for a `Bias` a tuple, one for each of its `arrays`; ``None`` for what was not given, or is
        no floating array.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, such as an array of another library or dtype.
    ValueError
        If a shape or a value does not fit, lengths of chunks are not known, there is dropout without a seed, or `score_mod`
        comes without its derivative.

    References
    ----------
    Liu, Zaharia, Abbeel, "Ring attention with blockwise transformers for near-infinite context", ICLR 2024.

    Examples
    --------
    >>> import dask.array as da
    >>> from attention_xp.distributed import dask_attention_vjp
    >>> x = da.eye(4, chunks=2)
    >>> output, vjp = dask_attention_vjp(x, x, x, is_causal=True)
    >>> vjp(da.ones((4, 4))).value.compute().round(2)
    array([[1.87, 1.87, 1.87, 1.87],
           [1.11, 1.11, 1.11, 1.11],
           [0.67, 0.67, 0.67, 0.67],
           [0.35, 0.35, 0.35, 0.35]])
    """
    if options:
        check_options(dask_attention_vjp, options)
    call = DaskCall.of(query, key, value, mask, dropout_rate, options, split_every)
    reason = derivative_refusal(call.problem)
    if reason is not None:
        raise ValueError(reason)
    output, lse = call.attended()

    def vjp(grad_output: Any) -> AttentionGradients[da.Array]:
        grad_output = as_dask("grad_output", grad_output)
        check_like_rows(call.problem, "grad_output", stand_in(grad_output), output.shape[-1])
        return AttentionGradients(*call.gradients(output, lse, grad_output))

    return output, vjp


@with_options
def dask_attention_statistics(
    query: Any, key: Any, mask: Array | Mask | None = None, *, split_every: int = 4, **options: Unpack[AttentionOptions]
) -> AttentionStatistics[da.Array]:
    r"""Return how sharp attention on arrays of Dask is and which keys it goes to.

    .. math::

        \mathrm{entropy}_i = \sum_p s_{ip} (\mathrm{entropy}_{ip} - \log s_{ip}), \qquad
        s_{ip} = e^{\mathrm{lse}_{ip} - \mathrm{lse}_i}

    with the entropies and log-sum-exps of a chunk :math:`i` of the query under chunks :math:`p` of the keys.

    Parameters
    ----------
    query, key, mask
        As in `dask_attention`. There is no value: the third argument is the mask.
    split_every : int, default: 4
        How many partial results a task merges.
    {options}

    Returns
    -------
    AttentionStatistics
        Those of `attention_statistics`, as dask arrays: ``lse``, ``max_score`` and ``entropy`` in the chunks of `query`,
        ``key_totals`` in those of its heads and of `key`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, such as an array of another library or dtype.
    ValueError
        If a shape or a value does not fit, lengths of chunks are not known, or `rng` is given, since nothing is dropped.

    Examples
    --------
    >>> import dask.array as da
    >>> from attention_xp.distributed import dask_attention_statistics
    >>> x = da.zeros((4, 8), chunks=2)
    >>> dask_attention_statistics(x, x, is_causal=True).key_totals.compute().round(2)
    array([2.08, 1.08, 0.58, 0.25])
    """
    check_options(dask_attention_statistics, options)
    if options.get("rng") is not None:
        raise ValueError("rng cannot be given: statistics are those of the weights before dropout")
    key = as_dask("key", key)
    call = DaskCall.of(query, key, key[..., :1] if key.ndim > 1 else key, mask, 0.0, options, split_every)
    return AttentionStatistics(*call.statistics())
