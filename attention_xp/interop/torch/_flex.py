"""torch's ``flex_attention``, computed here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from attention_xp._attention import flash_attention
from attention_xp._checks.arrays import shapes
from attention_xp._statistics import attention_statistics
from attention_xp._typing import ScoreMod
from attention_xp.biases import Bias
from attention_xp.interop.torch._autocast import as_autocast
from attention_xp.interop.torch._block_masks import rule_from_block_mask
from attention_xp.interop.torch._scalars import score_over_tiles
from attention_xp.masks import Mask

__all__ = ["flex_attention"]


def flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable[..., torch.Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_aux: Any = None,
    rule: Mask | Bias | ScoreMod | tuple[Mask | Bias | ScoreMod, ...] | None = None,
) -> Any:
    r"""Attend as ``torch.nn.attention.flex_attention.flex_attention`` does, with gradients on every device.

    .. math::

        \mathrm{score}_{ij} = \mathrm{score\_mod}(\mathrm{scale}\; q_i \cdot k_j, b, h, i, j), \qquad
        \mathrm{output} = \mathrm{softmax}(\mathrm{score})\, V

    Parameters
    ----------
    query : Tensor
        ``(B, H, Sq, D)``.
    key : Tensor
        ``(B, Hkv, Sk, D)``, or with a batch of 1.
    value : Tensor
        ``(B, Hkv, Sk, Dv)``, likewise.
    score_mod : callable, optional
        ``score_mod(score, b, h, q_idx, kv_idx)`` for a single score: all five are tensors without axes. It is mapped
        over all of them, so that it may index, reduce or compare what it has captured as it likes. What it has
        captured gets gradients.
    block_mask : BlockMask, optional
        As torch's ``create_block_mask`` makes it; see `rule_from_block_mask`.
    scale : float, optional
        Default: ``1 / sqrt(D)``.
    enable_gqa : bool, default: False
        Whether query heads share heads of key and value.
    return_lse : bool, default: False
        Whether to return the log-sum-exp as well.
    kernel_options : dict, optional
        Settings of torch's kernels, which do not compute here.
    return_aux : AuxRequest, optional
        With ``lse`` or ``max_scores``, on every device.
    rule : Mask, Bias, callable or tuple of one of each, optional
        The fast way, of our own: a rule of ``attention_xp.masks`` beside `block_mask`, a rule of ``attention_xp.biases``,
        which is added after `score_mod`, or a function in the place of `score_mod` that you know to work on whole tiles:
        ``score`` is ``(B, H, q, k)`` there, and the indices broadcast against it.

    Returns
    -------
    output : Tensor
        ``(B, H, Sq, Dv)``; 0 in rows that may attend nothing.
    lse : Tensor
        ``(B, H, Sq)``, natural logarithm. Only with `return_lse`.
    aux : AuxOutput
        ``lse`` and ``max_scores``, ``(B, H, Sq)`` or None. Only with `return_aux`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit.
    NotImplementedError
        If `kernel_options` are given, or a tensor is nested.

    References
    ----------
    Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", 2024; torch 2.13.

    Examples
    --------
    >>> import torch
    >>> from attention_xp.interop.torch import flex_attention
    >>> x = torch.ones(1, 2, 4, 8)
    >>> slopes = torch.tensor([0.5, 0.25], requires_grad=True)
    >>> output = flex_attention(x, x, x, lambda score, b, h, q, k: score - slopes[h] * (q - k).abs())
    >>> output.sum().backward()
    >>> slopes.grad.shape
    torch.Size([2])
    """
    _check_arrays(query, key, value, enable_gqa)
    query, key, value = as_autocast(query, key, value)
    if kernel_options:
        raise NotImplementedError(
            f"kernel_options are settings of torch's kernels, which do not compute here: {kernel_options}"
        )
    if return_lse and return_aux is not None:
        raise ValueError(
            "return_lse and return_aux both ask for the log-sum-exp: expected return_aux=AuxRequest(lse=True)"
        )
    fast = _sorted_out(rule)
    mask = fast.mask
    if block_mask is not None:
        blocks = _fitting(block_mask, query, key)
        mask = blocks if mask is None else mask & blocks
    given = {"bias": fast.bias, "scale": scale, "score_mod": _on_tiles(score_mod, fast.score_mod)}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if mask is not None:
        options["query_offset"] = 0
    if not return_lse and return_aux is None:
        return flash_attention(query, key, value, mask, **options)
    if return_lse:
        return flash_attention(query, key, value, mask, return_lse=True, **options)
    return _with_aux(query, key, value, mask, options, return_aux)


def _with_aux(query: Any, key: Any, value: Any, mask: Mask | None, options: dict[str, Any], request: Any) -> Any:
    """Return the output and what was asked for beside it."""
    from torch.nn.attention.flex_attention import AuxOutput  # noqa: PLC0415  # not in the oldest torch

    found = flash_attention(query, key, value, mask, return_lse=request.lse, **options)
    output, lse = found if request.lse else (found, None)
    most = None
    if request.max_scores:
        with torch.no_grad():
            most = attention_statistics(query, key, mask, **options).max_score
    return output, AuxOutput(lse=lse, max_scores=most)


class _Fast(NamedTuple):
    """The rules of a call by their kinds."""

    mask: Mask | None = None
    bias: Bias | None = None
    score_mod: ScoreMod | None = None


def _sorted_out(rule: Any) -> _Fast:
    """Return the rules of a call by their kinds, of each at most one."""
    found: dict[str, Any] = {}
    for one in () if rule is None else rule if isinstance(rule, tuple) else (rule,):
        kind = "mask" if isinstance(one, Mask) else "bias" if isinstance(one, Bias) else "score_mod"
        if kind == "score_mod" and not callable(one):
            raise TypeError(
                f"rule must be a Mask, a Bias, a function of tiles or a tuple of these, got {type(one).__name__}"
            )
        if kind in found:
            raise ValueError(
                f"rule holds two of a kind, {found[kind]!r} and {one!r}: expected one, such as mask & mask"
            )
        found[kind] = one
    return _Fast(**found)


def _on_tiles(score_mod: Any, fast: ScoreMod | None) -> ScoreMod | None:
    """Return the one function of scores as a function of tiles."""
    if score_mod is None:
        return fast
    if fast is not None:
        raise ValueError("score_mod and a function as rule both change the scores: expected one of them")
    if not callable(score_mod):
        raise TypeError(f"score_mod must be callable, got {type(score_mod).__name__}")
    return score_over_tiles(score_mod)


def _check_arrays(query: Any, key: Any, value: Any, grouped: bool) -> None:
    """Check what torch checks and `flash_attention` would not."""
    given = {"query": query, "key": key, "value": value}
    for name, a in given.items():
        if not isinstance(a, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(a).__name__}")
        if a.is_nested:
            raise NotImplementedError(f"{name} is nested: expected packed sequences, (T, H, D), in varlen_attn")
        if a.ndim != 4:
            raise ValueError(f"{name} must have 4 axes: expected {name} (B, H, S, D), {shapes(**{name: a})}")
    if query.shape[1] != key.shape[1] and not grouped:
        raise ValueError(
            f"query and key have different numbers of heads without enable_gqa=True: {shapes(query=query, key=key)}"
        )
    for name, a in (("key", key), ("value", value)):
        if a.shape[0] not in (1, query.shape[0]):
            raise ValueError(
                f"{name} must have the batch of the query, or 1: expected {name} ({query.shape[0]}, Hkv, Sk, D), {shapes(**given)}"
            )


def _fitting(block_mask: Any, query: torch.Tensor, key: torch.Tensor) -> Mask:
    """Return a block mask as a rule if it was made for these lengths."""
    rule, lengths = rule_from_block_mask(block_mask), (query.shape[-2], key.shape[-2])
    if tuple(block_mask.seq_lengths) != lengths:
        raise ValueError(
            f"block_mask was made for (Sq, Sk) = {tuple(block_mask.seq_lengths)}: expected {lengths}, "
            f"{shapes(query=query, key=key)}"
        )
    if block_mask.kv_indices.device != query.device:
        raise ValueError(f"block_mask is on {block_mask.kv_indices.device}: expected {query.device}, that of the query")
    return rule
