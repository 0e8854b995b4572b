"""The two functions that transformers asks for: attention, and the mask that its layers are handed.

A mask travels through a model as a rule and never as an array, so that attention skips what it excludes, in prefill, decoding
and training alike.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, eager_mask
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import _active_collector

from attention_xp import flash_attention, scaled_dot_product_attention
from attention_xp._backend.modes import is_mapped
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_count, check_number
from attention_xp._scores.region import span_between
from attention_xp._typing import Array
from attention_xp.interop._border import as_flag, as_index, check_tensors, named_as
from attention_xp.interop.transformers._carried_mask import CarriedMask
from attention_xp.interop.transformers._mask_functions import EVERYTHING, conjunction, padding_rule, translated
from attention_xp.masks import CausalMask, LengthMask, Mask

__all__ = ["attention_forward", "attention_mask", "register"]

# Keyword arguments that do not change what `eager` computes: transformers hands them through all layers.
_BOOKKEEPING = frozenset(
    {
        "cache", "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "kernel_options", "max_length_k",
        "max_length_q", "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits",
        "past_key_value", "past_key_values", "position_ids", "return_dict", "seq_idx", "sliding_window", "use_cache",
    }
)  # fmt: skip


_THEIRS = {
    "mask": "attention_mask",
    "scale": "scaling",
    "bias": "position_bias",
    "sinks": "s_aux",
    "dropout_rate": "dropout",
}


def register(name: str = "attention_xp") -> None:
    """Make attention of this library known to transformers, for all models, under a name.

    Registers both, `attention_forward` and `attention_mask`: without the latter, transformers would hand no mask at all.

    Parameters
    ----------
    name : str, default: "attention_xp"
        What to give as ``attn_implementation``.

    Raises
    ------
    TypeError
        If `name` is no str.
    ValueError
        If transformers takes `name` for something else: one with "flash" for a kernel that makes its own masks, one with
        "/" or "|" for a kernel to download or a paged one, and "eager" for the model's own.

    References
    ----------
    https://huggingface.co/docs/transformers/attention_interface

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from attention_xp.interop.transformers import register
    >>> register()
    >>> config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> config._attn_implementation = "attention_xp"
    >>> LlamaForCausalLM(config).config._attn_implementation
    'attention_xp'
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    if not name or name == "eager" or any(part in name for part in ("flash", "flex", "sdpa", "/", "|", ":")):
        raise ValueError(f"name must be none that transformers gives a meaning, got {name!r}")
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, attention_mask)


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Array | None = None,
    dtype: Any = torch.float32,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = "cpu",
    **kwargs: Any,  # noqa: ARG001
) -> Array | None:
    """Return a mask that holds a rule: what a model hands to its layers.

    It takes the place of ``transformers.masking_utils.eager_mask``, whose arguments these are.

    Parameters
    ----------
    batch_size, q_length, kv_length : int
        ``B``, ``Sq`` and ``Sk``.
    q_offset, kv_offset : int or array, default: 0
        Positions of the first query and of the first key.
    mask_function : callable, default: causal
        ``mask_function(batch_idx, head_idx, q_idx, kv_idx)`` returns whether a query may attend a key.
    attention_mask : array, optional
        ``(B, S)``: which positions are tokens and no padding.
    dtype : dtype, default: float32
        That of the numbers, should anything ask for them.
    allow_is_bidirectional_skip : bool, default: False
        Whether to return None where every query may attend every key.
    use_vmap : bool, default: False
        Whether a function that is not known is called with indices without axes, or with arrays that broadcast.
    device : device, default: "cpu"
        Where the model computes.
    **kwargs
        ``allow_is_causal_skip``, ``local_size``, ``config`` and others that tell the functions of transformers when a mask may
        be left out. They change nothing here.

    Returns
    -------
    array or None
        ``(B, 1, Sq, Sk)``, a tensor without storage: it shows the numbers of ``eager_mask`` when an operation of torch asks
        for them. While torch traces or compiles, and for padding inside of `vmap`, an array that holds these numbers.

    Raises
    ------
    TypeError
        If a size is no int, an offset neither an int nor an array of one, or `attention_mask` is no tensor.
    ValueError
        If a size is negative, an offset too large, or `attention_mask` is not ``(B, S)``.

    Examples
    --------
    >>> from attention_xp.interop.transformers import attention_mask
    >>> mask = attention_mask(batch_size=1, q_length=3, kv_length=3)
    >>> mask
    CarriedMask(CausalMask(), query_offset=0, shape=(1, 1, 3, 3))
    >>> (mask == 0.0).int()
    tensor([[[[1, 0, 0],
              [1, 1, 0],
              [1, 1, 1]]]], dtype=torch.int32)
    """
    arguments = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        "dtype": dtype,
        "use_vmap": use_vmap,
        "device": device,
    }
    is_padded = attention_mask is not None
    if is_tracing(attention_mask if is_padded else q_offset) or (is_padded and is_mapped(attention_mask)):
        return eager_mask(**arguments, allow_is_bidirectional_skip=allow_is_bidirectional_skip)
    for name, size in (("batch_size", batch_size), ("q_length", q_length), ("kv_length", kv_length)):
        check_count(name, size, low=0)
    # A static cache counts in a tensor, which changes in place.
    arguments |= {name: as_index(name, n) for name, n in {"q_offset": q_offset, "kv_offset": kv_offset}.items()}
    if attention_mask is not None:
        _check_padding(attention_mask, batch_size)
        arguments["attention_mask"] = attention_mask = attention_mask.to(device=device, dtype=torch.bool)
    shift = arguments["kv_offset"]
    rules = [translated(mask_function, shift, is_mapped=use_vmap)]
    if attention_mask is not None:
        rules.append(padding_rule(attention_mask, shift, kv_length))
    query_offset = arguments["q_offset"] - shift
    rule = _simplest(conjunction(rules), q_length, kv_length, query_offset)
    if allow_is_bidirectional_skip and rule == EVERYTHING:
        return None
    return CarriedMask(rule, query_offset, arguments)


def _check_padding(attention_mask: Any, batch_size: int) -> None:
    check_tensors(attention_mask=attention_mask)
    if attention_mask.ndim != 2 or len(attention_mask) != batch_size:
        raise ValueError(
            f"attention_mask must say of each position whether it is a token: expected ({batch_size}, S), "
            f"{shapes(attention_mask=attention_mask)}"
        )


def _simplest(rule: Mask, Sq: int, Sk: int, query_offset: int) -> Mask:
    """Return a rule that says the same of these rows and keys, and is asked faster: steps of decoding are small."""
    if Sq == 1 and rule == CausalMask():
        rule = LengthMask(max(0, query_offset + 1))
    is_certain = rule.reach(span_between(None, (0, Sq), (0, Sk), (query_offset, 0)))[1]
    return EVERYTHING if bool(is_certain) else rule


@named_as(_THEIRS)
def attention_forward(
    module: torch.nn.Module,
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Array | None = None,
    *,
    rng: Any = None,
    **kwargs: Any,
) -> tuple[Array, Array | None]:
    r"""Attend, as a layer of transformers asks for it.

    .. math:: \mathrm{softmax}(\mathrm{softcap}(s\, Q K^T) + \mathrm{position\_bias} + \mathrm{mask})\, V

    with the sink of each head in the denominator, where there are sinks.

    Parameters
    ----------
    module : torch.nn.Module
        The layer. It drops weights only while it trains, and tells whether it is causal where there is no mask.
    query : array
        ``(B, H, Sq, D)``.
    key, value : array
        ``(B, Hkv, Sk, D)`` and ``(B, Hkv, Sk, Dv)``: query head ``h`` uses key/value head ``h // (H // Hkv)``.
    attention_mask : array or None
        What `attention_mask` returned, or an array of one's own that broadcasts to ``(B, H, Sq, Sk)``: boolean (True = may attend), or
        floating (added to the scores). Without it, a layer that is causal attends in causal order unless ``Sq == 1``.
    dropout : float, default: 0.0
        Rate at which weights are dropped.
    scaling : float, optional
        :math:`s`. Default: ``1 / sqrt(D)``.
    is_causal : bool, optional
        Default: ``module.is_causal``, or True where it says nothing. A mask takes its place.
    position_bias : array, optional
        Broadcasts to ``(B, H, Sq, Sk)``.
    rng : int or torch.Generator, optional
        Source of the dropout. Default: torch's global generator.
    **kwargs
        ``softcap``, ``s_aux`` (sinks, ``(H,)``), ``output_attentions``, and what changes nothing here, such as ``position_ids``.

    Returns
    -------
    output : array
        ``(B, Sq, H, Dv)``.
    weights : array or None
        ``(B, H, Sq, Sk)`` after dropout, with ``output_attentions=True``.

    Raises
    ------
    NotImplementedError
        If an argument is not known that might change the result; it is named.
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit, or the mask was made for other lengths.

    Examples
    --------
    >>> import torch
    >>> from attention_xp import flash_attention
    >>> from attention_xp.interop.transformers import attention_forward, attention_mask
    >>> query = torch.randn(1, 2, 3, 4)
    >>> mask = attention_mask(batch_size=1, q_length=3, kv_length=3)
    >>> output, weights = attention_forward(torch.nn.Identity(), query, query, query, mask)
    >>> torch.allclose(output.transpose(1, 2), flash_attention(query, query, query, is_causal=True))
    True
    """
    _check_layer(query, key, value, dropout)
    softcap, sinks = kwargs.pop("softcap", None), kwargs.pop("s_aux", None)
    _refuse_unknown(kwargs, attention_mask, key.shape[-2])
    options = {
        "scale": scaling,
        "softcap": softcap,
        "bias": position_bias,
        "sinks": sinks,
        "rng": rng,
        "dropout_rate": dropout if getattr(module, "training", True) else 0.0,
        **_mask_options(module, query, key, attention_mask, is_causal),
    }
    options = {name: option for name, option in options.items() if option is not None}
    if as_flag("output_attentions", kwargs.get("output_attentions")) or _collects_weights():
        output, weights = scaled_dot_product_attention(query, key, value, **options)
    else:
        output, weights = flash_attention(query, key, value, **options), None
    return output.transpose(1, 2).contiguous(), weights


def _check_layer(query: Any, key: Any, value: Any, dropout: Any) -> None:
    check_tensors(query=query, key=key, value=value)
    for name, a in (("query", query), ("key", key), ("value", value)):
        if a.ndim != 4:
            raise ValueError(f"{name} must have 4 axes: expected {name} (B, H, S, D), {shapes(**{name: a})}")
    if not 0.0 <= check_number("dropout", dropout) <= 1.0:
        raise ValueError(f"dropout must satisfy 0 <= dropout <= 1, got {dropout}")


def _mask_options(
    module: torch.nn.Module, query: Array, key: Array, mask: Array | None, is_causal: bool | None
) -> dict[str, Any]:
    """Return the options that say what may be attended."""
    Sq, Sk = query.shape[-2], key.shape[-2]
    if isinstance(mask, CarriedMask) and torch.compiler.is_compiling():
        mask = mask._numbers
    if isinstance(mask, CarriedMask) and not mask.is_exposed:
        if tuple(mask.shape[-2:]) != (Sq, Sk):
            raise ValueError(f"attention_mask was made for (Sq, Sk) = {tuple(mask.shape[-2:])}, got {(Sq, Sk)}")
        return {} if mask.rule == EVERYTHING else {"mask": mask.rule, "query_offset": mask.query_offset}
    if mask is not None:
        return {"mask": mask.dense() if isinstance(mask, CarriedMask) else mask}
    is_causal = as_flag("is_causal", getattr(module, "is_causal", True) if is_causal is None else is_causal)
    return {"is_causal": True, "query_offset": 0} if is_causal and Sq > 1 else {}


def _collects_weights() -> bool:
    """Whether the model returns weights: some take ``output_attentions`` for themselves, and collect what layers return."""
    if torch.compiler.is_compiling() and not _active_collector.compiling:
        return False
    return any("attentions" in name for name in _active_collector.get() or ())


def _refuse_unknown(given: dict[str, Any], mask: Array | None, Sk: int) -> None:
    """Refuse what may change the result and is not known, and what a mask would have to say where there is none."""
    for name, argument in given.items():
        if argument is not None and name not in _BOOKKEEPING:
            raise NotImplementedError(
                f"argument {name!r} is not known, and may change the result: use attn_implementation='eager'"
            )
    if mask is not None:
        return
    window = given.get("sliding_window")
    if window is not None and window < Sk:
        raise NotImplementedError("sliding_window needs the attention_mask that says which way the window extends")
    if given.get("cu_seq_lens_q") is not None:
        raise NotImplementedError("cu_seq_lens_q needs the attention_mask that keeps packed sequences apart")
