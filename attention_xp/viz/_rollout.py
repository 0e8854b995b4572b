"""How attention flows through several layers."""

from collections.abc import Sequence
from typing import Any

from attention_xp._backend.dtypes import as_dtype, computation_dtype
from attention_xp._backend.libraries import common_namespace, device
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_floating, check_placement
from attention_xp._public_types import ArrayT
from attention_xp._typing import Array, Namespace

__all__ = ["attention_rollout"]


def attention_rollout(weights_per_layer: Sequence[ArrayT]) -> ArrayT:
    r"""Return how much of each input reaches each position of the last layer, by attention and by residual connections.

    .. math::

        R = \hat A_L \, \hat A_{L-1} \cdots \hat A_1, \qquad
        \hat A_l = \mathrm{rows}\left(I + \frac{1}{H} \sum_h A_{l h}\right)

    where :math:`\mathrm{rows}` divides each row by its sum: half of what a position holds comes through the residual
    connection, the other half from where the weights :math:`A` of the layer, averaged over its heads, say. A row without
    weights passes on what it holds.

    Parameters
    ----------
    weights_per_layer : sequence of array
        The weights of each self-attention, from the first layer to the last: each ``(..., H, S, S)``, or ``(B, S, S)`` or
        ``(S, S)`` without heads, floating, as `scaled_dot_product_attention` returns them.

    Returns
    -------
    array
        ``(..., S, S)`` in the dtype of the weights: in row :math:`i` the shares of all inputs in position :math:`i` of the
        last layer, which sum up to 1.

    Raises
    ------
    TypeError
        If `weights_per_layer` is no list or tuple of floating arrays of one library.
    ValueError
        If it is empty, if the weights are not square, or if layers differ in anything but the number of heads.

    Notes
    -----
    An estimate, made of weights alone: what values, output projections, dense layers and normalisations do is left out.

    Works on the arrays of every library, and inside ``jit``, ``grad``, ``torch.compile`` and ``vmap``.

    References
    ----------
    Abnar and Zuidema, "Quantifying attention flow in transformers", ACL 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.viz import attention_rollout
    >>> first = np.asarray([[1.0, 0.0], [1.0, 0.0]])  # both attend the first position
    >>> attention_rollout([first, first])
    array([[1.  , 0.  ],
           [0.75, 0.25]])
    """
    xp = _checked(weights_per_layer)
    first = weights_per_layer[0]
    dtype = computation_dtype(xp, first.dtype)
    eye = xp.eye(first.shape[-1], dtype=dtype, device=device(first))
    rollout = None
    for weights in weights_per_layer:
        mixed = _mixed(xp, as_dtype(xp, weights, dtype), eye)
        rollout = mixed if rollout is None else xp.matmul(mixed, rollout)  # (..., S, S) @ (..., S, S)
    return as_dtype(xp, rollout, first.dtype)  # type: ignore[no-any-return]


def _mixed(xp: Namespace, weights: Array, eye: Array) -> Array:
    """Return what reaches each position from the positions of the layer before, (..., S, S)."""
    if weights.ndim > 3:
        weights = xp.mean(weights, axis=-3)  # (..., H, S, S) -> (..., S, S)
    mixed = weights + filled_up(xp, eye, weights.ndim)
    return mixed / xp.sum(mixed, axis=-1, keepdims=True)


def _checked(weights_per_layer: Any) -> Namespace:
    """Refuse layers that cannot follow each other, and return their library."""
    if not isinstance(weights_per_layer, list | tuple):
        raise TypeError(
            f"weights_per_layer must be a list or tuple of arrays, one for each layer, got {type(weights_per_layer).__name__}"
        )
    if not weights_per_layer:
        raise ValueError("weights_per_layer must hold at least one layer, got none")
    named = {f"weights_per_layer[{i}]": weights for i, weights in enumerate(weights_per_layer)}
    xp = common_namespace(**named)
    check_floating(xp, **named)
    check_placement(xp, **named)
    kinds = {
        name: (tuple(a.shape[:-3]) if a.ndim > 3 else tuple(a.shape[:-2]), tuple(a.shape[-2:]), a.dtype)
        for name, a in named.items()
    }
    expected = next(iter(kinds.values()))
    for name, kind in kinds.items():
        shape = tuple(named[name].shape)
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"{name} must be square: expected (..., H, S, S), (B, S, S) or (S, S), got {shape}")
        if kind != expected:
            first = weights_per_layer[0]
            raise ValueError(
                f"layers must have one batch shape, length and dtype: expected those of the first, {tuple(first.shape)} "
                f"{first.dtype}, got {name} {shape} {named[name].dtype}"
            )
    return xp
