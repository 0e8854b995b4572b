"""The gradients of attention from a forward pass that is finished, such as that of a whole of which a call has a piece."""

from typing import Unpack

from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._public_types import Array, ArrayT
from attention_xp._vjp import AttentionGradients, WayBack, check_like_rows
from attention_xp.masks import Mask

__all__ = ["attention_gradients"]


@with_options
def attention_gradients(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    output: ArrayT,
    lse: ArrayT,
    grad_output: ArrayT,
    mask: Array | Mask | None = None,
    *,
    grad_lse: ArrayT | None = None,
    dropout_rate: float = 0.0,
    **options: Unpack[AttentionOptions],
) -> AttentionGradients[ArrayT]:
    r"""Return the gradients of attention, given what a forward pass has found.

    .. math::

        P = e^{S - \mathrm{lse}}, \quad
        dV = P^T dO, \quad
        dS = P \circ (dO V^T - \mathrm{rowsum}(O \circ dO) + d\,\mathrm{lse}), \quad
        dQ = \mathrm{scale} \, dS \, K, \quad
        dK = \mathrm{scale} \, dS^T Q

    The keys may be a piece of all keys. With the output and the log-sum-exp of the whole, the gradients of key and
    value are then exactly those of the whole, and the gradients of the query are the share of this piece: the shares of all
    pieces sum up to the gradient. `key_offset`, `key_positions`, `item_ids` and `head_ids` say which piece it is.

    Parameters
    ----------
    query : array
        ``(..., H, Sq, D)``.
    key : array
        ``(..., Hkv, Sk, D)``.
    value : array
        ``(..., Hkv, Sk, Dv)``.
    output : array
        ``(..., H, Sq, Dv)``: the output for all keys, in any floating dtype.
    lse : array
        ``(..., H, Sq)``: the log-sum-exp of all scores of each row, as `flash_attention` and `merge_attention` return it.
    grad_output : array
        ``(..., H, Sq, Dv)``: the gradient of the output.
    mask
        As in `scaled_dot_product_attention`.
    grad_lse : array, optional
        ``(..., H, Sq)``: the gradient of the log-sum-exp, where something was computed from it.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``, as in the forward pass, with its seed.
    {options}

    Returns
    -------
    AttentionGradients
        ``(query, key, value, mask, bias, sinks)``, each with the shape and dtype of its argument; ``None`` for what was
        not given, or is no floating array. Sinks belong to one piece only.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no array, another library, another dtype.
    ValueError
        If a shape or a value does not fit, `impl` cannot compute the call, or `score_mod` comes without its
        derivative where the library has no derivatives of its own.

    See Also
    --------
    attention_vjp : The forward pass and its gradients.

    References
    ----------
    Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", ICLR 2024.

    Liu, Zaharia, Abbeel, "Ring attention with blockwise transformers for near-infinite context", ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import attention_gradients, flash_attention
    >>> x = np.eye(4)
    >>> output, lse = flash_attention(x, x, x, is_causal=True, return_lse=True)
    >>> pieces = [
    ...     attention_gradients(
    ...         x, x[i : i + 2], x[i : i + 2], output, lse, np.ones((4, 4)), is_causal=True, query_offset=0, key_offset=i
    ...     )
    ...     for i in (0, 2)
    ... ]
    >>> np.concatenate([piece.value for piece in pieces]).round(2)
    array([[1.87, 1.87, 1.87, 1.87],
           [1.11, 1.11, 1.11, 1.11],
           [0.67, 0.67, 0.67, 0.67],
           [0.35, 0.35, 0.35, 0.35]])
    """
    if options:
        check_options(attention_gradients, options)
    way = WayBack.of(query, key, value, mask, dropout_rate, options)
    width = value.shape[-1]
    check_like_rows(way.problem, "output", output, width)
    check_like_rows(way.problem, "lse", lse)
    check_like_rows(way.problem, "grad_output", grad_output, width)
    if grad_lse is not None:
        check_like_rows(way.problem, "grad_lse", grad_lse)
    return way.gradients(output, lse, grad_output, grad_lse)
