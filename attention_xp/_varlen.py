"""Attention over packed sequences of different lengths."""

from numbers import Integral
from typing import Any, Literal, Unpack, overload

from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.values import known_integers, values_on_host
from attention_xp._checks.arrays import check_floating, check_integers, check_placement, shapes
from attention_xp._checks.numbers import check_flag, check_position
from attention_xp._engine.kernels.packed import attend_one_by_one, attend_together
from attention_xp._engine.problem.from_options import check_one_place
from attention_xp._engine.problem.options import AttentionOptions, PackedOptions, check_options, with_options
from attention_xp._engine.problem.result import Wanted
from attention_xp._public_types import Array, ArrayT
from attention_xp._typing import Namespace
from attention_xp.biases import Bias
from attention_xp.masks import Mask
from attention_xp.masks._mask import holds_array

__all__ = ["varlen_attention"]

_LENGTHS = ("query_lengths", "key_lengths")  # which the bounds say
_OWN = ("query_offset", "key_offset", "key_positions", "item_ids")  # of which sequences, or keys, have each their own


@overload
def varlen_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array | None = None,
    *,
    mask: Mask | None = None,
    dropout_rate: float = 0.0,
    return_lse: Literal[False] = False,
    **options: Unpack[PackedOptions],
) -> ArrayT: ...
@overload
def varlen_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array | None = None,
    *,
    mask: Mask | None = None,
    dropout_rate: float = 0.0,
    return_lse: Literal[True],
    **options: Unpack[PackedOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def varlen_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array | None = None,
    *,
    mask: Mask | None = None,
    dropout_rate: float = 0.0,
    return_lse: bool,
    **options: Unpack[PackedOptions],
) -> ArrayT | tuple[ArrayT, ArrayT]: ...
@with_options
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array | None = None,
    *,
    mask: Mask | None = None,
    dropout_rate: float = 0.0,
    return_lse: bool = False,
    **options: Unpack[PackedOptions],
) -> Any:
    r"""Attend within each of several sequences that are packed one after another.

    .. math:: \mathrm{output}_{c_i : c_{i+1}} = \mathrm{attention}(Q_{c_i : c_{i+1}}, K_{c'_i : c'_{i+1}}, V_{c'_i : c'_{i+1}})

    The cost follows the sum of the squares of the lengths. Positions, also those that rules and
    `score_mod` see, count inside each sequence, and ``b`` is the number of the sequence. Where an option speaks of
    the batch shape, it is ``(N,)`` here; so a piece of a packed call, of some of its sequences, heads, rows or keys,
    gives what it contributes to the whole, and `merge_attention` joins pieces of the keys.

    Parameters
    ----------
    query : array
        ``(T, H, D)``: all tokens of all sequences.
    key : array
        ``(Tk, Hkv, D)``.
    value : array
        ``(Tk, Hkv, Dv)``.
    cu_seqlens_q : array
        ``(N + 1,)`` integers, from 0 and not decreasing: sequence ``i`` is rows
        ``cu_seqlens_q[i]:cu_seqlens_q[i + 1]``. Rows after the last come out as zeros.
    cu_seqlens_k : array, optional
        The same for keys and values. Default: `cu_seqlens_q`.
    mask : Mask, optional
        A rule, whose arrays may have one row for each sequence in the place of the batch; arrays are not accepted.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    return_lse : bool, default: False
        Whether to return the log-sum-exp as well.
    bias : Bias, optional
        A rule from ``attention_xp.biases``, whose arrays may have one row for each sequence in the place of the batch,
        such as slopes ``(N, H)``; arrays are not accepted.
    query_offset : int or integer array, optional
        Position of the first query of each sequence, or ``(N,)``, one for each; keys start at position 0 unless they are
        given others. Required with `is_causal` and `window` where `cu_seqlens_k` or positions of keys are given: ``0``
        aligns top-left.
    key_positions : integer array, optional
        ``(Tk,)``, the position of each packed key in its sequence, in place of `key_offset`. A negative position is that
        of an empty slot, which is never attended.
    {options}

    Returns
    -------
    output : array
        ``(T, H, Dv)``.
    lse : array
        ``(T, H)``, natural logarithm, at least float32, sinks included. ``-inf`` for a row that may attend nothing,
        and for rows after the last sequence. Only with `return_lse`. The function of that name in ``flash_attn`` has
        ``(H, T)``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, such as an array for `mask` or `bias`.
    ValueError
        If a shape or a value does not fit, if lengths are given, or if `is_causal` or `window` come
        with `cu_seqlens_k` and without `query_offset`.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import varlen_attention
    >>> x = np.ones((10, 8, 64))
    >>> varlen_attention(x, x, x, np.asarray([0, 3, 10]), is_causal=True).shape
    (10, 8, 64)
    >>> output, lse = varlen_attention(x, x, x, np.asarray([0, 3, 9]), return_lse=True)
    >>> np.exp(lse[:, 0] - 8.0).round()  # as many keys as a sequence has, all with the same score
    array([3., 3., 3., 6., 6., 6., 6., 6., 6., 0.])
    """
    check_options(varlen_attention, options, dict.fromkeys((*PackedOptions.__annotations__, *_LENGTHS)))
    wanted = Wanted(lse=check_flag("return_lse", return_lse))
    cu_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    given: Any = {}
    own: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for name, x in options.items():
        if name not in _OWN:
            given[name] = x
        elif x is not None:
            own[name] = x
            if hasattr(x, "dtype") and not isinstance(x, Integral):
                more[name] = x
    xp = common_namespace(query=query, key=key, value=value, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_k, **more)
    _check_arrays(xp, query, key, value, cu_seqlens_q, cu_k, **more)
    _check_rules(given, own, mask, cu_seqlens_k is None)
    count = cu_seqlens_q.shape[0] - 1
    own = {name: _checked(xp, name, x, key.shape[0], count) for name, x in own.items()}
    packed = tuple(xp.permute_dims(a[None, ...], (0, 2, 1, 3)) for a in (query, key, value))  # -> (1, H, T, D)
    if count == 0:  # then there is nothing to take a sequence's own part of
        for rule in (mask, given.get("bias")):
            if rule is not None:
                rule.check(xp, packed[0], (0,), query.shape[1])
        mask, given, own = None, {**given, "bias": None}, {}
    bounds = [
        _host_bounds(xp, *named) for named in (("cu_seqlens_q", cu_seqlens_q, query), ("cu_seqlens_k", cu_k, key))
    ]
    if None in bounds:
        found = attend_together(xp, packed, (cu_seqlens_q, cu_seqlens_k), mask, dropout_rate, given, own, wanted)
    else:
        found = attend_one_by_one(packed, bounds, mask, dropout_rate, given, own, wanted)
    output = xp.permute_dims(found.output[0, ...], (1, 0, 2))  # (1, H, T, Dv) -> (T, H, Dv)
    return output if found.lse is None else (output, xp.permute_dims(found.lse[0, ...], (1, 0)))  # (1, H, T) -> (T, H)


def _check_arrays(
    xp: Namespace, query: Array, key: Array, value: Array, cu_q: Array, cu_k: Array, **more: Array
) -> None:
    check_floating(xp, query=query, key=key, value=value)
    for name, a, letters in (
        ("query", query, "(T, H, D)"),
        ("key", key, "(Tk, Hkv, D)"),
        ("value", value, "(Tk, Hkv, Dv)"),
    ):
        if a.ndim != 3:
            raise ValueError(f"{name} must be packed: expected {name} {letters}, {shapes(**{name: a})}")
    if value.shape[0] != key.shape[0]:
        raise ValueError(
            f"value has {value.shape[0]} packed rows but key has {key.shape[0]}: expected value (Tk, Hkv, Dv), "
            f"{shapes(key=key, value=value)}"
        )
    check_placement(xp, query=query, key=key, value=value, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **more)
    for name, a in (("cu_seqlens_q", cu_q), ("cu_seqlens_k", cu_k)):
        check_integers(xp, name, a)
        if a.ndim != 1 or a.shape[0] < 1:
            raise ValueError(
                f"{name} must hold the bounds of N sequences: expected {name} (N + 1,), {shapes(**{name: a})}"
            )
    if cu_k.shape != cu_q.shape:
        raise ValueError(
            "cu_seqlens_k must bound as many sequences as cu_seqlens_q: expected cu_seqlens_k (N + 1,), "
            f"{shapes(cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)}"
        )


def _check_rules(options: AttentionOptions, own: dict[str, Any], mask: Any, same: bool) -> None:
    """Refuse what packed sequences cannot mean."""
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"mask must be a rule from attention_xp.masks for packed sequences, got {type(mask).__name__}")
    if mask is not None and holds_array(mask):
        raise ValueError("mask cannot hold an array of (Sq, Sk) for packed sequences: expected rules of positions")
    if not isinstance(options.get("bias"), Bias | None):
        raise TypeError(
            f"bias must be a rule from attention_xp.biases for packed sequences, got {type(options['bias']).__name__}"
        )
    for name in _LENGTHS:
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be given for packed sequences: cu_seqlens_q and cu_seqlens_k say it")
    moved = "key_offset" if "key_offset" in own else "key_positions" if "key_positions" in own else None
    if moved is not None:
        check_one_place(own.get("key_offset"), own.get("key_positions"))
    relative = (
        check_flag("is_causal", options.get("is_causal", False))
        or options.get("window") is not None
        or (mask is not None and mask.relative)
    )
    if (moved or not same) and relative and "query_offset" not in own:
        raise ValueError(
            f"query_offset is required with a causal or window mask where {moved or 'cu_seqlens_k'} is given: expected an "
            "int or (N,), 0 aligns each sequence top-left"
        )


def _checked(xp: Namespace, name: str, given: Any, keys: int, count: int) -> Any:
    """Return positions of keys, or an int for all sequences, or one each: as a list where the values can be read."""
    if name == "key_positions":
        kind, meaning, letters, size = "an integer array", "one position per packed key", "(Tk,)", keys
    elif isinstance(given, Integral):
        return check_position(name, given)
    else:
        kind, meaning, letters, size = "an int or an integer array", "an int or one per sequence", "(N,)", count
    check_integers(xp, name, given, kind)
    if tuple(given.shape) != (size,):
        raise ValueError(f"{name} must be {meaning}: expected {letters} = ({size},), {shapes(**{name: given})}")
    known = None if name == "key_positions" else values_on_host(xp, given)
    return given if known is None else known


def _host_bounds(xp: Namespace, name: str, cu_seqlens: Array, packed: Array) -> list[int] | None:
    """Return the bounds if what is computed may depend on them, and check them if they can be read."""
    bounds = values_on_host(xp, cu_seqlens)
    seen = known_integers(xp, cu_seqlens) if bounds is None else bounds
    if seen is not None and (seen[0] != 0 or seen[-1] > packed.shape[0] or sorted(seen) != seen):
        raise ValueError(
            f"{name} must start at 0, not decrease and not exceed the {packed.shape[0]} packed rows, got {seen}"
        )
    return bounds
