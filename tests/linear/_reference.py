"""Linear attention position by position in float64 NumPy, as plainly as it can be said.

Nothing here is shared with the package.
"""

from typing import Any, NamedTuple

import numpy as np


class LinearResult(NamedTuple):
    """Output ``(..., H, Sq, Dv)``, memory ``(..., Hkv, D, Dv)`` and sum of keys ``(..., Hkv, D)``."""

    output: np.ndarray
    memory: np.ndarray
    key_sum: np.ndarray


MAPS = {
    None: lambda x: x,
    "elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
}


def linear(
    query: Any,
    key: Any,
    value: Any,
    *,
    feature_map: Any = "elu",
    normalize: bool | None = None,
    is_causal: bool = False,
    update_rule: str = "linear",
    decay: Any = None,
    beta: Any = None,
    scale: float | None = None,
    state: Any = None,
    **_: Any,
) -> LinearResult:
    """Compute linear attention; inputs with 2 or 3 axes have no heads."""
    phi = MAPS.get(feature_map, feature_map)
    normalize = feature_map is not None if normalize is None else normalize
    scale = (1.0 if feature_map is not None else query.shape[-1] ** -0.5) if scale is None else scale
    causal = is_causal or update_rule != "linear" or state is not None
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    q, k = phi(q), phi(k)
    if q.ndim > 3 and q.shape[-3] != k.shape[-3]:
        group = q.shape[-3] // k.shape[-3]
        outputs = [
            linear(
                q[..., i::group, :, :], k, v, feature_map=None, normalize=normalize, is_causal=is_causal,
                update_rule=update_rule, decay=decay, beta=beta, scale=scale, state=state,
            )
            for i in range(group)
        ]  # fmt: skip
        joined = np.stack([r.output for r in outputs], axis=-3)  # (..., Hkv, G, Sq, Dv)
        return outputs[0]._replace(output=joined.reshape(*joined.shape[:-4], q.shape[-3], *joined.shape[-2:]))
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    D, S = k.shape[-1], k.shape[-2]
    M, z = np.zeros((*lead, D, v.shape[-1])), np.zeros((*lead, D))
    if state is not None:
        M = M + state[0]
        z = z if state[1] is None else z + state[1]
    g = np.broadcast_to(0.0 if decay is None else np.asarray(decay, np.float64), (*lead, S, D))
    b = None if beta is None else np.broadcast_to(np.asarray(beta, np.float64), (*lead, S, 1))
    outputs = []
    for t in range(S):
        M = np.exp(g[..., t, :, None]) * M
        k_t, u = np.broadcast_to(k[..., t, :], (*lead, D)), np.broadcast_to(v[..., t, :], (*lead, v.shape[-1]))
        if b is not None:
            u = b[..., t, :] * (u - np.einsum("...de,...d->...e", M, k_t))
        M = M + k_t[..., :, None] * u[..., None, :]
        z = z + k_t
        if causal:
            outputs.append(_answer(q[..., t : t + 1, :], M, z, scale, normalize))
    if not causal:
        outputs = [_answer(q, M, z, scale, normalize)]
    empty = np.zeros((*lead, 0, v.shape[-1]))
    return LinearResult(np.concatenate([empty, *outputs], axis=-2), M, z)


def _answer(q: np.ndarray, M: np.ndarray, z: np.ndarray, scale: float, normalize: bool) -> np.ndarray:
    said = scale * (q @ M)
    if not normalize:
        return said
    divisor = q @ z[..., None]
    return np.divide(said, divisor, out=np.zeros_like(said), where=divisor != 0)
