"""The slopes of attention with linear biases."""

from attention_xp._backend.dtypes import floating_dtype
from attention_xp._backend.libraries import creation_namespace
from attention_xp._engine.numbers import check_count
from attention_xp._typing import Array, Device, DType, Namespace

__all__ = ["alibi_slopes"]


def alibi_slopes(
    num_heads: int, *, xp: Namespace | None = None, dtype: DType | str | None = None, device: Device | None = None
) -> Array:
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

    Returns
    -------
    array
        ``(H,)``, positive and at most 1.

    Raises
    ------
    TypeError
        If `num_heads` is no int.
    ValueError
        If `num_heads` is less than 1, or `dtype` is not floating.

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
    xp = creation_namespace(xp)
    dtype = floating_dtype(xp, dtype)
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * h / power) for h in range(1, 2 * (heads - power), 2)]
    return xp.asarray(slopes, dtype=dtype, device=device)
