"""Positive random features of the softmax kernel (FAVOR+)."""

import math
from dataclasses import dataclass
from typing import Any

from attention_xp._backend.autocast import unnarrowed
from attention_xp._backend.creation import place_of
from attention_xp._backend.dtypes import as_dtype, computation_dtype
from attention_xp._backend.libraries import array_namespace, common_namespace
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_floating, shapes
from attention_xp._checks.numbers import check_count, check_flag, check_positive
from attention_xp._random.draws import check_rng, normal
from attention_xp._typing import Array, Device, DType, Namespace

__all__ = ["PerformerFeatures", "performer_features"]


@dataclass(frozen=True, eq=False)
class PerformerFeatures:
    """A random feature map; made by `performer_features`, called on arrays ``(..., S, D)``."""

    projection: Array
    """``(D, m)``: one direction in each column."""
    scale: float
    """The kernel is ``exp(scale * x.y)``."""

    def __call__(self, x: Array) -> Array:
        """Return the features ``(..., S, m)``, all positive."""
        xp = common_namespace(x=x, projection=self.projection)
        check_floating(xp, x=x)
        if x.ndim < 1 or x.shape[-1] != self.projection.shape[0]:
            raise ValueError(
                f"x must be as wide as the features were made for: expected x (..., S, {self.projection.shape[0]}), {shapes(x=x)}"
            )
        x = x * math.sqrt(self.scale)
        xp, context = unnarrowed(xp, x)
        with context:
            projected = xp.matmul(x, as_dtype(xp, self.projection, x.dtype))
        half = 0.5 * xp.sum(x * x, axis=-1, keepdims=True)
        return xp.exp(projected - (half + 0.5 * math.log(self.projection.shape[-1])))

    def width(self, D: int) -> int:
        """Return the number of features."""
        if self.projection.shape[0] != D:
            raise ValueError(
                f"feature_map was made for width {self.projection.shape[0]}: expected query (..., H, S, D) and key "
                f"(..., Hkv, S, D) with D = {self.projection.shape[0]}, got width {D}"
            )
        return int(self.projection.shape[-1])

    def pull(self, x: Array, grad: Array) -> Array:
        """Return the gradient of rows whose features have the gradient `grad`."""
        xp = array_namespace(x)
        grad = grad * self(x)
        projection = xp.matrix_transpose(as_dtype(xp, self.projection, x.dtype))
        xp, context = unnarrowed(xp, x)
        with context:
            along = xp.matmul(grad, projection) * math.sqrt(self.scale)
        return along - x * (self.scale * xp.sum(grad, axis=-1, keepdims=True))


def performer_features(
    width: int,
    num_features: int | None = None,
    *,
    scale: float | None = None,
    orthogonal: bool = True,
    rng: Any = None,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: Array | None = None,
) -> PerformerFeatures:
    r"""Draw positive random features whose products estimate the softmax kernel without bias.

    .. math::

        \phi(x) = \frac{1}{\sqrt{m}} \exp\left(\sqrt{c}\, W^T x - \tfrac{c}{2} |x|^2\right), \qquad
        \mathrm{E}[\phi(x) \cdot \phi(y)] = e^{c\, x \cdot y}

    The columns of W are standard normal. Within each group of D columns they are orthogonal, which
    lowers the variance.

    Parameters
    ----------
    width : int
        ``D``, the width of queries and keys.
    num_features : int, optional
        ``m``. Default: ``D log(D)``, rounded.
    scale : float, optional
        ``c``, positive. Default: ``1 / sqrt(D)``, that of attention.
    orthogonal : bool, default: True
        Whether directions are orthogonal in groups of ``D``, or independent.
    rng : int, random generator or JAX key, optional
        A seed (same features on every backend, to rounding), or a generator of the library `xp`.
        Default: fresh entropy; required with JAX.
    xp : module, optional
        The array library, such as ``cupy``, ``torch`` or ``jax.numpy``. Default: NumPy.
    dtype : dtype or str, optional
        A dtype of `xp` or its name. Default: the default floating dtype of `xp`.
    device : device, optional
        Where to place the directions. Default: the default device of `xp`.
    like : array, optional
        An array whose library, device and dtype to take, in place of `xp` and `device`; a given `dtype` wins.

    Returns
    -------
    PerformerFeatures
        A feature map for `linear_attention`, and by itself a function of arrays ``(..., S, D)``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a number is out of range, `rng` is missing with JAX, or `like` comes with `xp` or `device`.

    References
    ----------
    Choromanski et al., "Rethinking attention with performers", ICLR 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.linear import performer_features
    >>> phi = performer_features(4, 4096, scale=1.0, rng=0)
    >>> x, y = np.asarray([[0.5, 0.0, -0.5, 0.2]]), np.asarray([[0.3, 0.6, -0.1, 0.0]])
    >>> bool(abs((phi(x) @ phi(y).T) / np.exp(x @ y.T) - 1.0) < 0.05)
    True
    """
    D = check_count("width", width)
    m = max(1, round(D * math.log(D))) if num_features is None else check_count("num_features", num_features)
    c = 1.0 / math.sqrt(D) if scale is None else check_positive("scale", scale)
    check_flag("orthogonal", orthogonal)
    xp, dtype, device = place_of(xp, dtype, device, like)
    check_rng(rng, xp)
    dtype = xp.zeros((), dtype=dtype, device=device).dtype
    groups = -(-m // D)
    wide = computation_dtype(xp, dtype)
    draws = normal(rng, (2, groups, D, D), xp=xp, dtype=wide, device=device)
    directions = draws[0, ...]
    if orthogonal:
        directions = _orthogonal(directions, device, xp) * _lengths(draws[1, ...], xp)
    columns = xp.reshape(xp.permute_dims(directions, (1, 0, 2)), (D, groups * D))[:, :m]
    return PerformerFeatures(as_dtype(xp, columns, dtype), c)


def _orthogonal(directions: Array, where: Device, xp: Namespace) -> Array:
    """Return orthonormal columns, uniformly distributed because the signs follow those of the factor R."""
    q, r = xp.linalg.qr(directions)
    ones = filled_up(xp, xp.eye(r.shape[-1], dtype=r.dtype, device=where), r.ndim)
    diagonal = xp.sum(r * ones, axis=-2, keepdims=True)
    return xp.where(diagonal < 0.0, -q, q)


def _lengths(draws: Array, xp: Namespace) -> Array:
    """Return lengths as normal vectors have them, (groups, 1, D), independent of the directions."""
    return xp.sqrt(xp.sum(draws * draws, axis=-2, keepdims=True))
