"""Attention within one sequence, and from one sequence to another."""

from typing import Literal, Unpack, overload

from attention_xp._attention import scaled_dot_product_attention
from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, check_one_dtype, check_width
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._public_types import Array, ArrayT
from attention_xp.masks import Mask

__all__ = ["cross_attention", "self_attention"]


@overload
def self_attention(
    x: ArrayT,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: Literal[True] = True,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def self_attention(
    x: ArrayT,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: Literal[False],
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, None]: ...
@overload
def self_attention(
    x: ArrayT,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT | None]: ...
@with_options
def self_attention(
    x: Array,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool = True,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, Array | None]:
    r"""Attend within one sequence: query, key and value are all `x`.

    .. math:: \mathrm{output} = \mathrm{softmax}\left(\frac{X X^T}{\sqrt{D}} + \mathrm{mask}\right) X

    Parameters
    ----------
    x : array
        ``(B, S, D)``; ``(S, D)`` and ``(..., H, S, D)`` work as well.
    d_model : int
        The width ``D`` of `x`.
    mask, dropout_rate, return_weights
        As in `scaled_dot_product_attention`.
    {options}

    Returns
    -------
    output : array
        Shape of `x`.
    weights : array or None
        ``(B, S, S)``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `d_model` is not the width of `x`, or another shape or value does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import self_attention
    >>> output, weights = self_attention(np.ones((32, 10, 64)), d_model=64)
    >>> output.shape, weights.shape
    ((32, 10, 64), (32, 10, 10))
    """
    check_options(self_attention, options)
    check_floating(common_namespace(x=x), x=x)
    check_width(d_model, x=x)
    return scaled_dot_product_attention(x, x, x, mask, dropout_rate, return_weights=return_weights, **options)


@overload
def cross_attention(
    query: ArrayT,
    context: ArrayT,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: Literal[True] = True,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def cross_attention(
    query: ArrayT,
    context: ArrayT,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: Literal[False],
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, None]: ...
@overload
def cross_attention(
    query: ArrayT,
    context: ArrayT,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT | None]: ...
@with_options
def cross_attention(
    query: Array,
    context: Array,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool = True,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, Array | None]:
    r"""Attend from one sequence to another: key and value are both `context`.

    .. math:: \mathrm{output} = \mathrm{softmax}\left(\frac{Q C^T}{\sqrt{D}} + \mathrm{mask}\right) C

    Parameters
    ----------
    query : array
        ``(B, Sq, D)``; ``(Sq, D)`` and ``(..., H, Sq, D)`` work as well.
    context : array
        ``(B, Sk, D)``, with as many axes as `query`.
    d_model : int
        The width ``D`` of both.
    mask, dropout_rate, return_weights
        As in `scaled_dot_product_attention`.
    {options}

    Returns
    -------
    output : array
        Shape of `query`.
    weights : array or None
        ``(B, Sq, Sk)``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `d_model` is not the width of both inputs, or another shape or value does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import cross_attention
    >>> output, weights = cross_attention(np.ones((2, 10, 64)), np.ones((2, 20, 64)), d_model=64)
    >>> output.shape, weights.shape
    ((2, 10, 64), (2, 10, 20))
    """
    check_options(cross_attention, options)
    check_one_dtype(common_namespace(query=query, context=context), query=query, context=context)
    check_width(d_model, query=query, context=context)
    return scaled_dot_product_attention(
        query, context, context, mask, dropout_rate, return_weights=return_weights, **options
    )
