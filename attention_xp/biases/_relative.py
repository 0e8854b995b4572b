"""Scores of queries with embeddings of the distance to the key (Shaw), and the shift that aligns them (Transformer-XL)."""

import math

from attention_xp._backend.autocast import unnarrowed
from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import common_namespace, device as device_of, padded
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.values import within
from attention_xp._checks.arrays import check_floating, check_one_dtype, check_placement, shapes
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import ArrayT
from attention_xp._scores.alignment import aligned_integers
from attention_xp._scores.frame import frame_of
from attention_xp._typing import Array, Namespace

__all__ = ["relative_position_scores", "relative_shift"]


def relative_position_scores(
    query: ArrayT, embeddings: ArrayT, key_len: int, *, query_offset: int | Array = 0
) -> ArrayT:
    r"""Return the product of every query with the embedding of its distance to every key.

    .. math:: s_{ij} = q_i \cdot a_{\mathrm{clip}(j - p_i,\, -m,\, m)}, \qquad p_i = \mathrm{offset} + i

    It is the second term of :math:`q_i \cdot (k_j + a_{j - i})`: scaled like the first, it is a `bias` of attention.

    Parameters
    ----------
    query : array
        ``(Sq, D)``, ``(B, Sq, D)`` or ``(..., H, Sq, D)``.
    embeddings : array
        ``(2 * m + 1, D)``, in the dtype of `query`: row ``m + d`` belongs to keys ``d`` positions after the query,
        the outer rows to all keys farther away.
    key_len : int
        ``Sk``, the number of keys.
    query_offset : int or integer array of the batch shape, default: 0
        Position of the first query; keys start at position 0.

    Returns
    -------
    array
        ``(..., H, Sq, Sk)``, in the dtype of `query`. 16-bit input is computed in float32.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `embeddings` has another width than `query` or an even number of rows, or an offset does not fit.

    References
    ----------
    Shaw et al., "Self-attention with relative position representations", NAACL 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.biases import relative_position_scores
    >>> relative_position_scores(np.ones((3, 1)), np.asarray([[-1.0], [0.0], [1.0]]), key_len=4)
    array([[ 0.,  1.,  1.,  1.],
           [-1.,  0.,  1.,  1.],
           [-1., -1.,  0.,  1.]])
    """
    xp = common_namespace(query=query, embeddings=embeddings)
    _check(xp, query, embeddings)
    key_len = check_count("key_len", key_len, low=0)
    lead, has_heads = tuple(query.shape[:-2]), query.ndim > 3
    batch = lead[:-1] if has_heads else lead
    frame = frame_of(xp, query, batch, lead[-1] if has_heads else None, key_len)
    offset = aligned_integers(frame, "query_offset", query_offset)
    if offset is None:
        raise TypeError("query_offset must be an int or an integer array, got NoneType")
    wide = (as_dtype(xp, a, frame.dtype) for a in (query, xp.matrix_transpose(embeddings)))
    xp, context = unnarrowed(xp, query)
    with context:
        products = xp.matmul(*wide)  # (..., H, Sq, D) @ (D, R) -> (..., H, Sq, R)
    if not isinstance(offset, int):
        offset = filled_up(xp, offset, query.ndim, behind=3 if has_heads else 2)
    return as_dtype(xp, _gathered(xp, products, key_len, offset), query.dtype)


def relative_shift(scores: ArrayT) -> ArrayT:
    r"""Move the scores of queries with embeddings of distances to the keys that have these distances.

    .. math:: y_{ij} = x_{i,\, j + S_q - 1 - i} \quad \text{where } j \le i + S_k - S_q, \text{ otherwise } 0

    Column ``c`` of `scores` belongs to keys ``Sk - 1 - c`` positions before the query, and the last query is aligned
    with the last key. Keys after the query have no score; attention excludes them with ``is_causal=True`` and
    ``query_offset=Sk - Sq``.

    Parameters
    ----------
    scores : array
        ``(..., Sq, Sk)``, floating: queries times embeddings of the distances ``Sk - 1`` to 0.

    Returns
    -------
    array
        Same shape and dtype.

    Raises
    ------
    TypeError
        If `scores` is no floating array.
    ValueError
        If `scores` has less than two axes.

    References
    ----------
    Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context", ACL 2019, appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.biases import relative_shift
    >>> relative_shift(np.asarray([[3.0, 2.0, 1.0, 0.0]] * 2))
    array([[2., 1., 0., 0.],
           [3., 2., 1., 0.]])
    """
    xp = common_namespace(scores=scores)
    check_floating(xp, scores=scores)
    if scores.ndim < 2:
        raise ValueError(f"scores needs at least 2 axes: expected scores (..., Sq, Sk), {shapes(scores=scores)}")
    *lead, Sq, Sk = scores.shape
    wide = padded(xp, scores, [(0, 0)] * (scores.ndim - 1) + [(1, 0)])
    # One column more than the result has: in memory, each row begins one place earlier than the row before.
    rows = xp.reshape(xp.reshape(wide, (*lead, Sq * (Sk + 1)))[..., Sq:], (*lead, Sq, Sk))
    i, j = (xp.arange(n, dtype=xp.int32, device=device_of(scores)) for n in (Sq, Sk))
    return xp.where(filled_up(xp, j[None, :] <= i[:, None] + (Sk - Sq), rows.ndim), rows, 0.0)


def _check(xp: Namespace, query: Array, embeddings: Array) -> None:
    check_one_dtype(xp, query=query, embeddings=embeddings)
    check_placement(xp, query=query, embeddings=embeddings)
    wrong = None
    if query.ndim < 2 or embeddings.ndim != 2:
        wrong = "query needs at least 2 axes and embeddings exactly 2"
    elif embeddings.shape[1] != query.shape[-1]:
        wrong = f"embeddings has width {embeddings.shape[1]} but query has width {query.shape[-1]}"
    elif embeddings.shape[0] % 2 == 0:
        wrong = f"embeddings has {embeddings.shape[0]} rows, which leaves none for distance 0"
    if wrong is not None:
        raise ValueError(
            f"{wrong}: expected query (..., Sq, D) and embeddings (2 * max_distance + 1, D), "
            f"{shapes(query=query, embeddings=embeddings)}"
        )


def _gathered(xp: Namespace, products: Array, key_len: int, offset: int | Array) -> Array:
    """Take for every pair the product at its distance; `offset` broadcasts to ``(..., H, Sq, Sk)``."""
    *lead, Sq, R = products.shape
    i, j = (xp.arange(n, dtype=xp.int32, device=device_of(products)) for n in (Sq, key_len))
    reach = R // 2
    distance = j[None, :] - i[:, None]  # (Sq, Sk)
    if not isinstance(offset, int):
        distance = filled_up(xp, distance, offset.ndim)
    column = within(xp, distance - offset, -reach, reach) + reach
    if isinstance(offset, int):
        places = xp.reshape(i[:, None] * R + column, (-1,))
        return xp.reshape(xp.take(xp.reshape(products, (*lead, Sq * R)), places, axis=-1), (*lead, Sq, key_len))
    count = math.prod(lead) * Sq
    row = xp.reshape(xp.arange(count, dtype=xp.int32, device=device_of(products)), (*lead, Sq, 1))
    places = xp.reshape(row * R + column, (-1,))
    return xp.reshape(xp.take(xp.reshape(products, (-1,)), places, axis=0), (*lead, Sq, key_len))
