"""The slopes of attention with linear biases."""

from typing import Any, overload

from attention_xp._backend.creation import place_of
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import Array, ArrayT
from attention_xp._typing import Device, DType, Namespace

__all__ = ["alibi_slopes"]


@overload
def alibi_slopes(
    num_heads: int,
    *,
    like: ArrayT,
) -> ArrayT: ...
@overload
def alibi_slopes(
    num_heads: int,
    *,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any: ...
def alibi_slopes(
    num_heads: int,
    *,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any:
    r"""Return the slopes of ALiBi: head ``h`` lowers the score of a pair by its slope times their distance.

    .. math:: m_h = 2^{-8 h / H}, \qquad 1 \le h \le H

    where :math:`H` is a power of two. Otherwise the slopes of the next lower power of two come first, and then
    every other slope of twice that power, from the first.

    Parameters
    ----------
    num_heads : int
        ``H``.
    xp : module, optional
        The array library, such as ``cupy``, ``torch`` or ``jax.numpy``. Default: NumPy.
    dtype : dtype or str, optional
        A floating dtype of `xp` or its name. Default: the default floating dtype of `xp`.
    device : device, optional
        Where to place the array. Default: the default device of `xp`.
    like : array, optional
        An array whose library, device and dtype to take, in place of `xp` and `device`; a given `dtype` wins.

    Returns
    -------
    array
        ``(H,)``, positive and at most 1.

    Raises
    ------
    TypeError
        If `num_heads` is no int, or `like` no floating array.
    ValueError
        If `num_heads` is less than 1, `dtype` is not floating, or `like` comes with `xp` or `device`.

    References
    ----------
    Press et al., "Train short, test long: attention with linear biases enables input length extrapolation",
    ICLR 2022.

    Examples
    --------
    >>> from attention_xp import alibi_slopes
    >>> alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625])
    """
    heads = check_count("num_heads", num_heads)
    xp, dtype, device = place_of(xp, dtype, device, like)
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * h / power) for h in range(1, 2 * (heads - power), 2)]
    return xp.asarray(slopes, dtype=dtype, device=device)
