"""torch's ``varlen_attn``, computed here."""

from operator import index
from typing import Any

import torch

from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.values import known_integers
from attention_xp._checks.arrays import check_integers, check_placement, shapes
from attention_xp._checks.numbers import check_count
from attention_xp._varlen import varlen_attention
from attention_xp.cache._pages import laid_out, missing, reached
from attention_xp.interop._border import as_flag, check_tensors, named_as
from attention_xp.masks import LengthMask

__all__ = ["varlen_attn"]

_LETTERS = {
    "query": "(T, H, D)",
    "key": "(Tk, Hkv, D)",
    "value": "(Tk, Hkv, Dv)",
    "cu_seq_q": "(N + 1,)",
    "cu_seq_k": "(N + 1,)",
    "seqused_k": "(N,)",
    "block_table": "(N, pages of a sequence)",
}
_PAGES = {"key": "(pages, page size, Hkv, D)", "value": "(pages, page size, Hkv, Dv)"}


@named_as(
    {
        "cu_seqlens_q": "cu_seq_q",
        "cu_seqlens_k": "cu_seq_k",
        "mask": "seqused_k",
        "lengths": "seqused_k",
        "query_offset": "seqused_k",
        "window": "window_size",
    }
)
def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> Any:
    r"""Attend within packed sequences as ``torch.nn.attention.varlen.varlen_attn`` does, on every device and in every dtype.

    .. math:: \mathrm{output}_{c_i : c_{i+1}} = \mathrm{attention}(Q_{c_i : c_{i+1}}, K_{c'_i : c'_{i+1}}, V_{c'_i : c'_{i+1}})

    The last query of a sequence is aligned with its last key.

    Parameters
    ----------
    query : Tensor
        ``(T, H, D)``.
    key : Tensor
        ``(Tk, Hkv, D)``; with `block_table` a pool of pages ``(pages, page size, Hkv, D)``.
    value : Tensor
        As `key`, with a width of its own.
    cu_seq_q : Tensor
        ``(N + 1,)``: sequence ``i`` is rows ``cu_seq_q[i]:cu_seq_q[i + 1]``.
    cu_seq_k : Tensor or None
        The same for the keys; None, or not looked at, with `block_table`.
    max_q, max_k : int
        The greatest lengths, which torch's kernels need to know beforehand. Nothing depends on them here.
    return_aux : AuxRequest, optional
        With ``lse=True`` the log-sum-exp is returned as well.
    scale : float, optional
        Default: ``1 / sqrt(D)``.
    window_size : (int, int), default: (-1, -1)
        How many keys before and after its own position a query attends; -1 leaves a side open, ``(-1, 0)`` is causal.
    enable_gqa : bool, default: False
        Whether query heads share heads of key and value.
    seqused_k : Tensor, optional
        ``(N,)``: how many keys of each sequence count; the last of these is aligned with the last query.
    block_table : Tensor, optional
        ``(N, pages of a sequence)``: which pages hold a sequence, in order. The pages are copied together, once for each
        call; ``attention_xp.cache.paged_attention`` reads them where they lie.
    num_splits : int, optional
        1, or None: keys are never split between workers here.

    Returns
    -------
    output : Tensor
        ``(T, H, Dv)``.
    lse : Tensor
        ``(H, T)``, as torch's kernel has it, though its documentation says ``(T, H)``. Only with ``return_aux.lse``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit.
    NotImplementedError
        If `num_splits` is above 1.

    References
    ----------
    ``torch.nn.attention.varlen`` of torch 2.13.

    Examples
    --------
    >>> import torch
    >>> from attention_xp.interop.torch import varlen_attn
    >>> x, bounds = torch.ones(10, 4, 8), torch.tensor([0, 3, 10])
    >>> varlen_attn(x, x, x, bounds, bounds, 7, 7, window_size=(-1, 0)).shape
    torch.Size([10, 4, 8])
    """
    for name, most in (("max_q", max_q), ("max_k", max_k)):
        check_count(name, most, low=0)
    _check(query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table)
    if num_splits is not None and check_count("num_splits", num_splits) != 1:
        raise NotImplementedError(f"num_splits={num_splits}: keys are not split here, expected 1 or None")
    if block_table is not None:
        key, value, cu_seq_k = _gathered(key, value, block_table, seqused_k)
    elif cu_seq_k is None:
        raise ValueError("cu_seq_k is required without block_table: expected cu_seq_k (N + 1,)")
    if query.ndim == key.ndim == 3 and query.shape[1] != key.shape[1] and not as_flag("enable_gqa", enable_gqa):
        raise ValueError(
            f"query and key have different numbers of heads without enable_gqa=True: {shapes(query=query, key=key)}"
        )
    wants_lse = return_aux is not None and as_flag("return_aux.lse", getattr(return_aux, "lse", return_aux))
    used = _used(seqused_k, torch.diff(cu_seq_k))
    found = varlen_attention(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        mask=None if seqused_k is None else LengthMask(seqused_k),
        window=_window(window_size),
        query_offset=used - torch.diff(cu_seq_q),
        scale=scale,
        return_lse=wants_lse,
    )
    return (found[0], found[1].transpose(0, 1)) if wants_lse else found


def _check(query: Any, key: Any, value: Any, bounds_q: Any, bounds_k: Any, used: Any, table: Any) -> None:
    """Check kinds, numbers of axes, and that all is there for each sequence."""
    if table is not None and used is None:
        raise ValueError("block_table needs seqused_k: expected seqused_k (N,), the number of keys of each sequence")
    given = {"query": query, "key": key, "value": value, "cu_seq_q": bounds_q}
    given |= {} if table is not None or bounds_k is None else {"cu_seq_k": bounds_k}
    given |= {name: a for name, a in (("seqused_k", used), ("block_table", table)) if a is not None}
    check_tensors(**given)
    xp = common_namespace(query=query)
    check_placement(xp, **given)
    letters = _LETTERS | ({} if table is None else _PAGES)
    for name, a in given.items():
        if a.ndim != letters[name].count(",") + (",)" not in letters[name]):
            raise ValueError(
                f"{name} has the wrong number of axes: expected {name} {letters[name]}, {shapes(**{name: a})}"
            )
        if name in ("cu_seq_q", "cu_seq_k", "seqused_k", "block_table"):
            check_integers(xp, name, a)
    N = len(bounds_q) - 1
    for name, count in (("cu_seq_k", N + 1), ("seqused_k", N), ("block_table", N)):
        if name in given and len(given[name]) != count:
            raise ValueError(
                f"{name} does not fit the {N} sequences of cu_seq_q: expected {letters[name]}, {shapes(**{name: given[name]})}"
            )
    if table is not None and value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"value must have the shape of key but for the width, {shapes(key=key, value=value)}")


def _used(given: torch.Tensor | None, lengths: torch.Tensor) -> torch.Tensor:
    """Return how many keys of each sequence count; where these numbers lie in host memory, refuse more keys than there are."""
    if given is None:
        return lengths
    known = known_integers(common_namespace(seqused_k=given), ((given < 0) | (given > lengths)).int())
    if known is not None and 1 in known:
        i = known.index(1)
        raise ValueError(f"seqused_k[{i}] is {int(given[i])}, but sequence {i} has {int(lengths[i])} keys")
    return given


def _window(size: Any) -> tuple[int | None, int | None] | None:
    """Return a window in our form."""
    try:
        left, right = map(index, size)
    except (TypeError, ValueError):
        raise ValueError(f"window_size must be two ints (left, right), got {size!r}") from None
    if min(left, right) < -1:
        raise ValueError(f"window_size must be (left, right), each -1 or more, got {size}")
    if (left, right) == (-1, -1):
        return None
    return (None if left == -1 else left, None if right == -1 else right)


def _gathered(key: Any, value: Any, table: torch.Tensor, used: Any) -> tuple[torch.Tensor, ...]:
    """Return keys and values of all sequences one behind the other, and their bounds: as many slots as the table has."""
    xp, size, count = common_namespace(key=key), key.shape[1], key.shape[0]
    known = known_integers(xp, missing(xp, table, used, size, count).int())
    if known is not None and 1 in known:
        raise ValueError(
            f"sequence {known.index(1)} reaches an entry of block_table that is none of the {count} pages of key"
        )
    return laid_out(xp, key, value, xp.where(reached(xp, table, used, size), table, 0))  # others may be anything
