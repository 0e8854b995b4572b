"""Scaled dot-product attention, with the weights and without."""

from typing import Any, Literal, Unpack, overload

from attention_xp._checks.numbers import check_flag
from attention_xp._engine.kernels.choose import attend, attend_call
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._public_types import Array, ArrayT
from attention_xp._typing import DType
from attention_xp.masks import Mask

__all__ = ["flash_attention", "scaled_dot_product_attention"]

_OUTPUT, _WITH_LSE = Wanted(), Wanted(lse=True)  # making one takes as long as a few operations on tiny arrays


@overload
def scaled_dot_product_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: Literal[True] = True,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: Literal[False],
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, None]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT | None]: ...
@with_options
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool = True,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, Array | None]:
    r"""Attend with every query to every key and return the weighted values, and the weights.

    .. math:: \mathrm{output} = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{D}} + \mathrm{mask}\right) V

    In full, in this order: ``score = scale * q.k``, `softcap`, `score_mod`, plus `bias` and floating
    `mask`, excluded positions to ``-inf``, softmax with `sinks`, dropout, times value.

    Parameters
    ----------
    query : array
        ``(..., H, Sq, D)``, or ``(B, Sq, D)`` or ``(Sq, D)`` without heads. float16 and bfloat16 are
        computed in float32.
    key : array
        ``(..., Hkv, Sk, D)`` with as many axes as `query`. Where ``H != Hkv``, query head ``h`` uses
        key/value head ``h // (H // Hkv)``.
    value : array
        ``(..., Hkv, Sk, Dv)``. Leading axes of all three broadcast.
    mask : array or Mask, optional
        Boolean (True = may attend) or floating (added to the scores, ``-inf`` excludes);
        broadcasts to ``(..., H, Sq, Sk)``. Where the scores have fewer axes, surplus axes of length 1
        are dropped, the heads axis first.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    return_weights : bool, default: True
        Whether to return the weights as well.
    {options}

    Returns
    -------
    output : array
        ``(..., H, Sq, Dv)``, with dtype, library and device of `query`. A row that may attend nothing is 0.
    weights : array or None
        ``(..., H, Sq, Sk)`` after dropout, exactly 0 where excluded; ``None`` unless `return_weights`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no array, another library, another dtype.
    ValueError
        If a shape or a value does not fit, or `impl` cannot compute the call.

    Notes
    -----
    Heads come before the sequence: ``(B, H, S, D)``, as in ``torch.nn.functional.scaled_dot_product_attention``. Arrays
    ``(B, S, H, D)``, the layout of ``jax.nn.dot_product_attention`` and of ``flash_attn``, would be attended over their
    heads without an error: exchange both axes before the call, and in the output after it, ``x.transpose(1, 2)`` in
    torch and ``jnp.swapaxes(x, 1, 2)`` in JAX.

    References
    ----------
    Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, "Attention is all you need",
    NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import scaled_dot_product_attention
    >>> x = np.eye(3)
    >>> output, weights = scaled_dot_product_attention(x, x, x, is_causal=True)
    >>> weights.round(2)
    array([[1.  , 0.  , 0.  ],
           [0.36, 0.64, 0.  ],
           [0.26, 0.26, 0.47]])
    """
    if options:
        check_options(scaled_dot_product_attention, options)
    wanted = Wanted(weights=check_flag("return_weights", return_weights))
    result = attend_call(query, key, value, mask, dropout_rate, options, wanted)
    return result.output, result.weights


@overload
def flash_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_lse: Literal[False] = False,
    output_dtype: DType | str | None = None,
    **options: Unpack[AttentionOptions],
) -> ArrayT: ...
@overload
def flash_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_lse: Literal[True],
    output_dtype: DType | str | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def flash_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_lse: bool,
    output_dtype: DType | str | None = None,
    **options: Unpack[AttentionOptions],
) -> ArrayT | tuple[ArrayT, ArrayT]: ...
@with_options
def flash_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_lse: bool = False,
    output_dtype: DType | str | None = None,
    **options: Unpack[AttentionOptions],
) -> Any:
    r"""Attend without returning the weights; the log-sum-exp of the scores on request.

    .. math::

        \mathrm{output} = \mathrm{softmax}(\mathrm{score})\, V, \qquad
        \mathrm{lse}_i = \log \sum_j e^{\mathrm{score}_{ij}}

    with the scores of `scaled_dot_product_attention`, in memory linear in the lengths.

    Parameters
    ----------
    query : array
        ``(..., H, Sq, D)``, or ``(B, Sq, D)`` or ``(Sq, D)`` without heads. float16 and bfloat16 are
        computed in float32.
    key : array
        ``(..., Hkv, Sk, D)`` with as many axes as `query`. Where ``H != Hkv``, query head ``h`` uses
        key/value head ``h // (H // Hkv)``.
    value : array
        ``(..., Hkv, Sk, Dv)``. Leading axes of all three broadcast.
    mask : array or Mask, optional
        Boolean (True = may attend) or floating (added to the scores, ``-inf`` excludes);
        broadcasts to ``(..., H, Sq, Sk)``.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    return_lse : bool, default: False
        Whether to return the log-sum-exp as well.
    output_dtype : dtype or str, optional
        Floating dtype of the output, of the library of `query`, or its name. Default: that of `query`. ``"float32"``
        keeps what was computed from 16-bit inputs as it is, such as parts that `merge_attention` is to join: these are
        then rounded once, after the last.
    {options}

    Returns
    -------
    output : array
        ``(..., H, Sq, Dv)``, with library and device of `query`, and its dtype unless `output_dtype` is another.
    lse : array
        ``(..., H, Sq)``, natural logarithm, at least float32, sinks included. ``-inf`` for a row
        that may attend nothing. Only with `return_lse`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no array, another library, another dtype.
    ValueError
        If a shape or a value does not fit, or `impl` cannot compute the call.

    Notes
    -----
    Heads come before the sequence: ``(B, H, S, D)``, as in ``torch.nn.functional.scaled_dot_product_attention``. Arrays
    ``(B, S, H, D)``, the layout of ``jax.nn.dot_product_attention`` and of ``flash_attn``, would be attended over their
    heads without an error: exchange both axes before the call, and in the output after it, ``x.transpose(1, 2)`` in
    torch and ``jnp.swapaxes(x, 1, 2)`` in JAX.

    References
    ----------
    Dao, Fu, Ermon, Rudra and Ré, "FlashAttention: fast and memory-efficient exact attention with
    IO-awareness", NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import flash_attention
    >>> x = np.zeros((2, 4, 8))
    >>> output, lse = flash_attention(x, x, x, return_lse=True)
    >>> output.shape, bool(np.allclose(lse, np.log(4)))
    ((2, 4, 8), True)
    >>> half = x.astype("float16")
    >>> flash_attention(half, half, half, output_dtype="float32").dtype
    dtype('float32')
    """
    if options:
        check_options(flash_attention, options)
    wanted = _WITH_LSE if check_flag("return_lse", return_lse) else _OUTPUT
    if output_dtype is None:
        result = attend_call(query, key, value, mask, dropout_rate, options, wanted)
    else:
        problem = Problem.of(query, key, value, mask, dropout_rate, options)
        result = attend(problem.with_output_dtype(output_dtype), wanted)
    return (result.output, result.lse) if return_lse else result.output
