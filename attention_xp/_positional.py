"""Absolute positions that are added to the embeddings: sinusoidal, and learned from random."""

from typing import Any, overload

from attention_xp._backend.creation import place_of
from attention_xp._checks.numbers import check_count, check_positive
from attention_xp._public_types import Array, ArrayT
from attention_xp._random.draws import check_rng, normal
from attention_xp._typing import Device, DType, Namespace

__all__ = ["learned_positional_encoding", "positional_encoding"]


@overload
def positional_encoding(
    seq_len: int,
    d_model: int,
    n: float = 10000,
    *,
    like: ArrayT,
) -> ArrayT: ...
@overload
def positional_encoding(
    seq_len: int,
    d_model: int,
    n: float = 10000,
    *,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any: ...
def positional_encoding(
    seq_len: int,
    d_model: int,
    n: float = 10000,
    *,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any:
    r"""Return the sinusoidal positional encoding.

    .. math::

        \mathrm{PE}(p, 2i) = \sin\left(p / n^{2i/d_\mathrm{model}}\right), \qquad
        \mathrm{PE}(p, 2i + 1) = \cos\left(p / n^{2i/d_\mathrm{model}}\right)

    Parameters
    ----------
    seq_len : int
        Number of positions ``p``, from 0.
    d_model : int
        Width; odd widths end in a sine.
    n : float, default: 10000
        The base; wavelengths grow from ``2 pi`` to ``2 pi n``.
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
        ``(seq_len, d_model)``. The angles are computed in float64 on the host, whatever the dtype, so
        the result is correctly rounded at any position.

    Raises
    ------
    TypeError
        If a size is no int, or `like` no floating array.
    ValueError
        If a size is negative, `n` is not positive, `dtype` is not floating, or `like` comes with `xp` or `device`.

    References
    ----------
    Vaswani et al., "Attention is all you need", NeurIPS 2017.

    Examples
    --------
    >>> from attention_xp import positional_encoding
    >>> positional_encoding(2, 4).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.01, 1.  ]])
    """
    import numpy as np  # noqa: PLC0415  # the import of the package loads no array library

    xp, dtype, device = place_of(xp, dtype, device, like)
    seq_len, d_model = check_count("seq_len", seq_len, low=0), check_count("d_model", d_model, low=0)
    n = check_positive("n", n)
    column = np.arange(d_model)
    frequency = n ** -((column - column % 2) / max(d_model, 1))
    angle = np.arange(seq_len)[:, None] * frequency  # (S, 1) * (d_model,) -> (S, d_model)
    table = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
    if dtype is None:
        dtype = xp.empty(0, device=device).dtype
    return xp.asarray(table, dtype=dtype, device=device)


@overload
def learned_positional_encoding(
    seq_len: int,
    d_model: int,
    *,
    rng: Any = None,
    like: ArrayT,
) -> ArrayT: ...
@overload
def learned_positional_encoding(
    seq_len: int,
    d_model: int,
    *,
    rng: Any = None,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any: ...
def learned_positional_encoding(
    seq_len: int,
    d_model: int,
    *,
    rng: Any = None,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> Any:
    r"""Return initial values for positions that are to be learned: normal, standard deviation 0.01.

    .. math:: \mathrm{PE}_{p, i} \sim N(0, 0.01^2)

    They are added to the embeddings, ``x + table[:S]`` for ``x`` of shape ``(B, S, d_model)``, and trained with the rest.

    Parameters
    ----------
    seq_len : int
        ``S``, the number of positions.
    d_model : int
        Width of the embeddings.
    rng : int, random generator or JAX key, optional
        A seed (same numbers on every backend), or a generator of the library `xp`. Default: fresh
        entropy; required with JAX.
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
        ``(seq_len, d_model)``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a size is negative, `rng` is missing with JAX, or `like` comes with `xp` or `device`.

    References
    ----------
    Gehring, Auli, Grangier, Yarats and Dauphin, "Convolutional sequence to sequence learning", ICML 2017. Box and
    Muller, "A note on the generation of random normal deviates", 1958.

    Examples
    --------
    >>> from attention_xp import learned_positional_encoding
    >>> learned_positional_encoding(512, 768, rng=0).shape
    (512, 768)
    """
    xp, dtype, device = place_of(xp, dtype, device, like)
    check_rng(rng, xp)
    shape = (check_count("seq_len", seq_len, low=0), check_count("d_model", d_model, low=0))
    return normal(rng, shape, xp=xp, dtype=dtype, device=device) * 0.01
