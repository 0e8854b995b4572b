"""Masks as arrays: padding and causal, additive or boolean."""

import math
from typing import Any, overload

from attention_xp._backend.creation import place_of
from attention_xp._backend.dtypes import dtype_name, is_boolean, is_floating, is_integer, named_dtype
from attention_xp._backend.libraries import common_namespace, device as device_of
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_count, check_int
from attention_xp._public_types import Array, ArrayT
from attention_xp._typing import Device, DType, Namespace

__all__ = ["create_causal_mask", "create_look_ahead_mask", "create_padding_mask"]


def create_padding_mask(seq: Array, pad_token: int = 0, *, dtype: DType | str | None = None) -> Any:
    r"""Return a mask that excludes the padding of a batch of token sequences.

    .. math:: \mathrm{mask}_{b, 1, 1, j} = 0 \text{ where } \mathrm{seq}_{bj} \ne \mathrm{pad}, \qquad -\infty \text{ elsewhere}

    or whether :math:`\mathrm{seq}_{bj} \ne \mathrm{pad}` as a boolean. It broadcasts over heads and queries.

    Parameters
    ----------
    seq : array
        ``(B, S)`` token ids.
    pad_token : int, default: 0
        The id that marks padding.
    dtype : dtype or str, optional
        A floating dtype for an additive mask (0 keeps, ``-inf`` excludes), or ``"bool"`` (True keeps).
        Default: the default floating dtype of the library of `seq`.

    Returns
    -------
    array
        ``(B, 1, 1, S)``, in the library and on the device of `seq`.

    Raises
    ------
    TypeError
        If `seq` is no array of numbers.
    ValueError
        If `seq` does not have two axes, or `dtype` is neither floating nor boolean.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import create_padding_mask
    >>> create_padding_mask(np.asarray([[5, 7, 0], [3, 0, 0]]))[:, 0, 0, :]
    array([[  0.,   0., -inf],
           [  0., -inf, -inf]])
    """
    xp = common_namespace(seq=seq)
    if not (is_integer(xp, seq.dtype) or is_floating(xp, seq.dtype)):
        raise TypeError(f"seq must hold token ids, got {dtype_name(seq.dtype)}")
    if seq.ndim != 2:
        raise ValueError(f"seq must have 2 axes: expected seq (B, S), {shapes(seq=seq)}")
    keep = _differs(xp, seq, check_int("pad_token", pad_token))
    return _mask_of(xp, xp.reshape(keep, (seq.shape[0], 1, 1, seq.shape[1])), dtype)


def _differs(xp: Namespace, seq: Any, token: int) -> Any:
    """Compare, also with a token outside the range of the dtype, which some libraries would wrap around."""
    if is_integer(xp, seq.dtype) and not xp.iinfo(seq.dtype).min <= token <= xp.iinfo(seq.dtype).max:
        return xp.ones(seq.shape, dtype=xp.bool, device=device_of(seq))
    return seq != token


@overload
def create_causal_mask(
    seq_len: int,
    *,
    like: ArrayT,
) -> ArrayT: ...
@overload
def create_causal_mask(
    seq_len: int,
    *,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any: ...
def create_causal_mask(
    seq_len: int,
    *,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any:
    r"""Return a mask under which no position attends to a later one.

    .. math:: \mathrm{mask}_{ij} = 0 \text{ where } j \le i, \qquad -\infty \text{ where } j > i

    for query :math:`i` and key :math:`j`, or whether :math:`j \le i` as a boolean.

    Parameters
    ----------
    seq_len : int
        ``S``, the length of the sequence.
    xp : module, optional
        The array library, such as ``cupy``, ``torch`` or ``jax.numpy``. Default: NumPy.
    dtype : dtype or str, optional
        A floating dtype for an additive mask (0 keeps, ``-inf`` excludes), or ``"bool"`` (True keeps).
        Default: the default floating dtype of `xp`.
    device : device, optional
        Where to place the array. Default: the default device of `xp`.
    like : array, optional
        An array whose library, device and dtype to take, in place of `xp` and `device`; a given `dtype` wins.

    Returns
    -------
    array
        ``(1, 1, S, S)``.

    Raises
    ------
    TypeError
        If `seq_len` is no int, or `like` no floating array.
    ValueError
        If `seq_len` is negative, `dtype` is neither floating nor boolean, or `like` comes with `xp` or `device`.

    See Also
    --------
    attention_xp.masks.CausalMask : the same rule, never materialised.

    Examples
    --------
    >>> from attention_xp import create_causal_mask
    >>> create_causal_mask(3)[0, 0]
    array([[  0., -inf, -inf],
           [  0.,   0., -inf],
           [  0.,   0.,   0.]])
    """
    xp, dtype, device = place_of(xp, dtype, device, like, named_dtype)
    seq_len = check_count("seq_len", seq_len, low=0)
    position = xp.arange(seq_len, dtype=xp.int32, device=device)
    keep = position[:, None] >= position[None, :]
    return _mask_of(xp, keep[None, None, :, :], dtype)


create_look_ahead_mask = create_causal_mask


def _mask_of(xp: Namespace, keep: Array, dtype: DType | str | None) -> Array:
    dtype = named_dtype(xp, dtype)
    if dtype is not None and is_boolean(xp, dtype):
        return keep
    zeros = xp.zeros(keep.shape, dtype=dtype, device=device_of(keep))
    mask: Array = xp.where(keep, zeros, -math.inf)
    return mask
