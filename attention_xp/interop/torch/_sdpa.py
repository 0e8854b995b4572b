"""torch's ``scaled_dot_product_attention``, computed here."""

import math
from typing import Any

import torch
from torch.nn.attention.bias import CausalBias, CausalVariant

from attention_xp._attention import flash_attention
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_flag, check_number
from attention_xp.interop._border import as_flag, check_tensors, named_as
from attention_xp.interop.torch._autocast import as_autocast

__all__ = ["scaled_dot_product_attention"]


@named_as({"mask": "attn_mask", "dropout_rate": "dropout_p"})
def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    rng: Any = None,
) -> torch.Tensor:
    r"""Attend as ``torch.nn.functional.scaled_dot_product_attention`` does.

    .. math:: \mathrm{output} = \mathrm{dropout}(\mathrm{softmax}(\mathrm{scale}\; Q K^T + \mathrm{mask}))\, V

    Parameters
    ----------
    query : Tensor
        ``(..., H, Sq, D)``, with two axes or more. Missing leading axes are added, and all of them broadcast, the heads
        of any of the three too where there is one.
    key : Tensor
        ``(..., Hkv, Sk, D)``.
    value : Tensor
        ``(..., Hv, Sk, Dv)``; with `enable_gqa` the number of its heads may differ from that of the key.
    attn_mask : Tensor, optional
        Boolean (True = may attend) or floating (added to the scores); broadcasts to ``(..., H, Sq, Sk)``. Or a
        ``torch.nn.attention.bias.CausalBias``, which is not materialised.
    dropout_p : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_p <= 1``.
    is_causal : bool, default: False
        Query ``i`` attends keys up to ``i``: both are aligned at their beginnings. Together with `attn_mask` both hold.
    scale : float, optional
        Default: ``1 / sqrt(D)``.
    enable_gqa : bool, default: False
        Whether query heads share heads of key and value; axis -3 is heads then, with three axes too.
    rng : int or torch.Generator, optional
        Source of the dropout. Default: torch's global generator, which ``torch.manual_seed`` seeds. The weights that are
        dropped are not those that torch drops.

    Returns
    -------
    Tensor
        ``(..., H, Sq, Dv)``; 0 in rows that may attend nothing. Under autocast it has autocast's dtype, as torch's has.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit.
    NotImplementedError
        If a tensor is nested.

    References
    ----------
    ``torch.nn.functional.scaled_dot_product_attention`` of torch 2.13.

    Examples
    --------
    >>> import torch
    >>> from attention_xp.interop.torch import scaled_dot_product_attention
    >>> x = torch.ones(2, 4, 5, 8)
    >>> scaled_dot_product_attention(x, x[:, :2], x[:, :2], is_causal=True, enable_gqa=True).shape
    torch.Size([2, 4, 5, 8])
    """
    _check_tensors(query=query, key=key, value=value)
    query, key, value, attn_mask = as_autocast(query, key, value, attn_mask)
    enable_gqa = as_flag("enable_gqa", enable_gqa)
    has_new_axis = enable_gqa and max(query.ndim, key.ndim, value.ndim) == 3
    query, key, value = _lined_up(query, key, value, enable_gqa)
    is_causal = check_flag("is_causal", is_causal)
    # A call is checked once for all of its kind only if nothing but plain options is given.
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale}
    if is_causal and query.shape[-2] != key.shape[-2]:
        options["query_offset"] = 0
    if isinstance(attn_mask, CausalBias):
        if is_causal:
            raise ValueError("is_causal cannot be given together with a CausalBias as attn_mask: it says it already")
        options |= _causal(attn_mask, query.shape[-2], key.shape[-2])
        attn_mask = None
    _check_mask(attn_mask)
    rate = check_number("dropout_p", dropout_p)
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"dropout_p must satisfy 0 <= dropout_p <= 1, got {dropout_p}")
    if rate == 1.0:  # nothing remains to be scaled up: zeros, with gradients of zero, as where no key may be attended
        rate, options["key_lengths"] = 0.0, 0
    if rng is not None:
        options["rng"] = rng
    output: torch.Tensor = flash_attention(query, key, value, attn_mask, rate, **options)
    return output[0] if has_new_axis else output


def _check_tensors(**tensors: Any) -> None:
    check_tensors(**tensors)
    for name, a in tensors.items():
        if a.is_nested:
            raise NotImplementedError(f"{name} is nested: expected packed sequences, (T, H, D), in varlen_attn")
        if a.ndim < 2:
            raise ValueError(f"{name} must have 2 axes or more: expected {name} (..., S, D), {shapes(**{name: a})}")


def _check_mask(mask: Any) -> None:
    if mask is None:
        return
    check_tensors(attn_mask=mask)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"attn_mask must be boolean or floating, got {mask.dtype}")
    if mask.ndim < 2:
        raise ValueError(f"attn_mask must have 2 axes or more: expected (..., Sq, Sk), {shapes(attn_mask=mask)}")


def _lined_up(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grouped: bool) -> tuple[torch.Tensor, ...]:
    """Return tensors with as many axes, and with heads as ours: as many of the value as of the key."""
    tensors = query, key, value
    axes = max(a.ndim for a in tensors)
    if grouped and axes == 2:
        raise ValueError(f"enable_gqa needs heads: expected query (..., H, Sq, D), {shapes(query=query)}")
    axes = max(axes, 4) if grouped else axes
    tensors = tuple(a if a.ndim == axes else a[(None,) * (axes - a.ndim)] for a in tensors)
    counts = tuple(a.shape[-3] for a in tensors) if axes > 3 else ()
    if len(set(counts)) < 2:
        return tensors
    return _grouped(*tensors, counts) if grouped else _broadcast(*tensors, counts)


def _grouped(query: Any, key: Any, value: Any, counts: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    H, Hkv, Hv = counts
    if any(n == 0 or H % n for n in (Hkv, Hv)):
        raise ValueError(
            f"the heads of the query, {H}, must be a multiple of those of key, {Hkv}, and value, {Hv}: "
            f"{shapes(query=query, key=key, value=value)}"
        )
    if Hkv != Hv:
        both = math.lcm(Hkv, Hv)
        key, value = (a.repeat_interleave(both // n, -3) for a, n in ((key, Hkv), (value, Hv)))
    return query, key, value


def _broadcast(query: Any, key: Any, value: Any, counts: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    heads = max(counts)
    if any(n not in (1, heads) for n in counts):
        raise ValueError(
            f"query, key and value must have the same number of heads, or one, without enable_gqa=True: "
            f"{shapes(query=query, key=key, value=value)}"
        )
    if counts[0] != heads:
        query = query.expand(*query.shape[:-3], heads, *query.shape[-2:])
    if counts[1] != counts[2]:
        key, value = (a.expand(*a.shape[:-3], heads, *a.shape[-2:]) for a in (key, value))
    return query, key, value


def _causal(bias: Any, Sq: int, Sk: int) -> dict[str, Any]:
    """Return the options that mean the same as a `CausalBias`."""
    if (bias.seq_len_q, bias.seq_len_kv) != (Sq, Sk):
        raise ValueError(
            f"attn_mask is a CausalBias of {bias.seq_len_q} queries and {bias.seq_len_kv} keys, got {Sq} and {Sk}"
        )
    return {"is_causal": True, "query_offset": Sk - Sq if bias.variant == CausalVariant.LOWER_RIGHT else 0}
