"""Multi-head attention: project, split into heads, attend, join, project."""

from typing import Literal, Unpack, overload

from attention_xp._backend.libraries import common_namespace, is_cupy_namespace
from attention_xp._checks.arrays import check_floating
from attention_xp._checks.numbers import check_flag
from attention_xp._engine.kernels.choose import attend, choose
from attention_xp._engine.problem.known_end import up_to
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._heads import join, split, stand_in
from attention_xp._multi_head_params import MultiHeadParams, given_arrays, head_counts, head_widths, project
from attention_xp._public_types import Array, ArrayT
from attention_xp.masks import Mask

__all__ = ["multi_head_attention", "multi_head_self_attention"]


@overload
def multi_head_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams[ArrayT] | None = None,
    num_kv_heads: int | None = None,
    return_weights: Literal[True] = True,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def multi_head_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams[ArrayT] | None = None,
    num_kv_heads: int | None = None,
    return_weights: Literal[False],
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, None]: ...
@overload
def multi_head_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams[ArrayT] | None = None,
    num_kv_heads: int | None = None,
    return_weights: bool,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT | None]: ...
@with_options
def multi_head_attention(
    query: Array,
    key: Array,
    value: Array,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams | None = None,
    num_kv_heads: int | None = None,
    return_weights: bool = True,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, Array | None]:
    r"""Attend with several heads, each on its own part of the width.

    .. math::

        \mathrm{output} = \mathrm{concat}(\mathrm{head}_1, \dots, \mathrm{head}_H)\, W^O, \qquad
        \mathrm{head}_h = \mathrm{attention}(Q W^Q_h, K W^K_h, V W^V_h)

    Parameters
    ----------
    query : array
        ``(B, Sq, d_model)``; the batch may have any number of axes.
    key, value : array
        ``(B, Sk, any)`` with `params`, which are as wide. Without, their width is
        ``num_kv_heads * (d_model // num_heads)``.
    num_heads : int
        ``H``. Without `params`, it divides `d_model`.
    d_model : int
        Width of the query; without `params`, of the output as well.
    mask : array or Mask, optional
        As in `scaled_dot_product_attention`; broadcasts to ``(B, H, Sq, Sk)``.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    params : MultiHeadParams, optional
        The projections. Heads are as wide as `w_q` and `w_v` make them, which the default `scale` goes by, and the
        output is as wide as `w_o`. Default: the identity; heads are split, attended and joined.
    num_kv_heads : int, optional
        ``Hkv`` of grouped-query attention, also beside `params`; divides `num_heads`. Default: `num_heads`.
    return_weights : bool, default: True
        Whether to return the weights as well.
    {options}

    Returns
    -------
    output : array
        ``(B, Sq, d_model)``, or as wide as `w_o` has columns.
    weights : array or None
        ``(B, H, Sq, Sk)`` after dropout; ``None`` unless `return_weights`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `d_model`, or what a projection makes, is not divisible by `num_heads`, or another shape or value does not fit.

    References
    ----------
    Vaswani et al., "Attention is all you need", NeurIPS 2017. Ainslie et al., "GQA: training generalized
    multi-query transformer models from multi-head checkpoints", EMNLP 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import init_multi_head_params, multi_head_attention
    >>> x = np.ones((32, 10, 512))
    >>> params = init_multi_head_params(512, num_heads=8, rng=0)
    >>> output, weights = multi_head_attention(x, x, x, num_heads=8, d_model=512, params=params)
    >>> output.shape, weights.shape
    ((32, 10, 512), (32, 8, 10, 10))
    """
    check_options(multi_head_attention, options)
    heads, kv_heads = head_counts(num_heads, num_kv_heads)
    inputs, p = {"query": query, "key": key, "value": value}, given_arrays(params)
    xp = common_namespace(**inputs, **p)
    D, Dv = head_widths(xp, inputs, p, d_model, heads, kv_heads)
    without_batch = query.ndim == 2  # its heads axis would be taken for a batch
    if without_batch:
        query, key, value = (xp.expand_dims(a, axis=0) for a in (query, key, value))
    wanted = Wanted(weights=check_flag("return_weights", return_weights))
    problem = Problem.of(
        stand_in(xp, query, heads, D),
        stand_in(xp, key, kv_heads, D),
        stand_in(xp, value, kv_heads, Dv),
        mask,
        dropout_rate,
        options,
    )
    if not is_cupy_namespace(xp):  # of whose arrays kernels judge the layout, too
        problem.once(choose, wanted)  # so that what `impl` cannot compute is refused before anything is projected
    key, value = (up_to(problem.key.shape[-2], problem.given_keys, a, axis=-2) for a in (key, value))
    query = split(project(query, p.get("w_q"), p.get("b_q"), xp), heads, xp)  # (B, Sq, d_model) -> (B, H, Sq, D)
    key = split(project(key, p.get("w_k"), p.get("b_k"), xp), kv_heads, xp)  # (B, Sk, any) -> (B, Hkv, Sk, D)
    value = split(project(value, p.get("w_v"), p.get("b_v"), xp), kv_heads, xp)
    output, weights, _ = attend(problem.of_arrays(query, key, value), wanted)
    output = project(join(output, xp), p.get("w_o"), p.get("b_o"), xp)  # (B, H, Sq, Dv) -> (B, Sq, any)
    if without_batch:
        output = xp.squeeze(output, axis=0)
        weights = None if weights is None else xp.squeeze(weights, axis=0)
    return output, weights


@overload
def multi_head_self_attention(
    x: ArrayT,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams[ArrayT] | None = None,
    num_kv_heads: int | None = None,
    return_weights: Literal[True] = True,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def multi_head_self_attention(
    x: ArrayT,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams[ArrayT] | None = None,
    num_kv_heads: int | None = None,
    return_weights: Literal[False],
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, None]: ...
@overload
def multi_head_self_attention(
    x: ArrayT,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams[ArrayT] | None = None,
    num_kv_heads: int | None = None,
    return_weights: bool,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT | None]: ...
@with_options
def multi_head_self_attention(
    x: Array,
    num_heads: int,
    d_model: int,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    params: MultiHeadParams | None = None,
    num_kv_heads: int | None = None,
    return_weights: bool = True,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, Array | None]:
    r"""Attend with several heads within one sequence: query, key and value are all `x`.

    .. math::

        \mathrm{output} = \mathrm{concat}(\mathrm{head}_1, \dots, \mathrm{head}_H)\, W^O, \qquad
        \mathrm{head}_h = \mathrm{attention}(X W^Q_h, X W^K_h, X W^V_h)

    Parameters
    ----------
    x : array
        ``(B, S, d_model)``.
    num_heads, d_model, mask, dropout_rate, params, num_kv_heads, return_weights
        As in `multi_head_attention`.
    {options}

    Returns
    -------
    output : array
        ``(B, S, d_model)``, or as wide as `w_o` has columns.
    weights : array or None
        ``(B, H, S, S)`` after dropout; ``None`` unless `return_weights`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `d_model` is not divisible by `num_heads`, or another shape or value does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import multi_head_self_attention
    >>> output, weights = multi_head_self_attention(np.ones((32, 10, 512)), num_heads=8, d_model=512)
    >>> output.shape, weights.shape
    ((32, 10, 512), (32, 8, 10, 10))
    """
    check_options(multi_head_self_attention, options)
    check_floating(common_namespace(x=x), x=x)
    return multi_head_attention(
        x,
        x,
        x,
        num_heads,
        d_model,
        mask,
        dropout_rate,
        params=params,
        num_kv_heads=num_kv_heads,
        return_weights=return_weights,
        **options,
    )
