"""What was probably meant by a name that is none: names of other libraries, and slips of the pen."""

from collections.abc import Collection, Iterable

__all__ = ["no_such_argument"]

# What other libraries call it, and what it is called here.
_ELSEWHERE = {
    "attention_mask": "mask",
    "attn_bias": "bias",
    "attn_mask": "mask",
    "block_mask": "mask",
    "causal": "is_causal",
    "cu_seqlens": "cu_seqlens_q",
    "dropout": "dropout_rate",
    "dropout_p": "dropout_rate",
    "dropout_rng": "rng",
    "generator": "rng",
    "implementation": "impl",
    "key_value_seq_lengths": "key_lengths",
    "local_window_size": "window",
    "logits_soft_cap": "softcap",
    "need_weights": "return_weights",
    "query_seq_lengths": "query_lengths",
    "return_attention_scores": "return_weights",
    "return_attn_probs": "return_weights",
    "s_aux": "sinks",
    "seed": "rng",
    "sliding_window": "window",
    "sm_scale": "scale",
    "softmax_scale": "scale",
    "use_causal_mask": "is_causal",
    "window_size": "window",
}
# What is said in another way.
_SAID = {
    "alibi_slopes": "did you mean bias=attention_xp.biases.AlibiBias(alibi_slopes)?",
    "enable_gqa": "not needed: fewer heads of key and value than of query are grouped",
    "key_padding_mask": "did you mean key_lengths, or mask=mask[:, None, None, :] of a (B, Sk) array, True = may attend?",
    "temperature": "did you mean scale=1 / temperature, in the place of the default 1 / sqrt(D)?",
}
# What only some functions return.
_RETURNED_BY = {"return_lse": "flash_attention", "return_weights": "scaled_dot_product_attention"}


def _meant(name: str, taken: Collection[str]) -> str:
    """Return ``" (did you mean 'mask'?)"`` for a name that is not among those taken, or nothing where none comes near."""
    here = _ELSEWHERE.get(name, name)
    if here in taken:
        return f" (did you mean {here!r}?)"
    if here in _RETURNED_BY:
        return f" (did you mean {here!r} of {_RETURNED_BY[here]}?)"
    if name in _SAID:
        return f" ({_SAID[name]})"
    from difflib import get_close_matches  # noqa: PLC0415  # no call that is right needs it

    near = get_close_matches(name, taken, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def no_such_argument(function: str, given: Iterable[str], taken: Collection[str]) -> str:
    """Return the complaint about the first of the given names that a function does not take."""
    name = next(name for name in given if name not in taken)
    return f"{function} has no argument {name!r}{_meant(name, taken)}: it takes {', '.join(taken)}"
