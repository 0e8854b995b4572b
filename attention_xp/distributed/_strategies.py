"""Attention on arrays that are sharded along the sequence, in four ways: the public functions."""

from importlib import import_module
from typing import Any, Unpack

from attention_xp._backend.libraries import common_namespace, library_name
from attention_xp._checks.numbers import check_flag
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._public_types import Array, ArrayT
from attention_xp.distributed._layouts import Layout, check_layout
from attention_xp.masks import Mask

__all__ = ["gathered_attention", "merged_attention", "ring_attention", "ulysses_attention"]

_MODULES = {"torch": "attention_xp.distributed._torch", "jax": "attention_xp.distributed._jax"}

_SHARED = """\
group : ProcessGroup, DeviceMesh or str{more}
    The ranks. In torch a process group, or a device mesh with one axis; in JAX the name of an axis of the mesh, inside
    ``jax.shard_map``.{pair}
{layout}
return_lse : bool, default: False
    Whether to return the log-sum-exp of the rows as well.
timeout : float, optional
    Seconds to wait for another rank, in torch; then a ``TimeoutError`` names rank, step and peer. Default: that of the group."""
_PAIR = """
    Of two axes, ``(ring, heads)``, or in torch a device mesh that has both in this order, the second exchanges heads, and
    along the first keys go round as in `ring_attention`. Shards are dealt out along the second axis first: rank
    ``r * n_heads + h`` is at place (r, h), as with ``PartitionSpec((ring, heads))``."""
_LAYOUT = """\
layout : {"zigzag", "contiguous"}, default: "zigzag"
    How `shard_sequence` cut the sequence."""


def _documented(function: Any) -> Any:
    """Fill in what the four docstrings share."""
    if function.__doc__:  # absent under `python -OO`
        layout = _LAYOUT.replace('default: "zigzag"', f'default: "{function.__kwdefaults__["layout"]}"')
        on_two_axes = function.__name__ == "ulysses_attention"
        shared = _SHARED.replace("{more}", ", or a tuple of two" if on_two_axes else "")
        shared = shared.replace("{pair}", _PAIR if on_two_axes else "").replace("{layout}", layout)
        function.__doc__ = function.__doc__.replace("    {shared}", _indented(shared))
    return with_options(function)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _called(
    function: Any,
    arrays: tuple[Any, Any, Any],
    mask: Any,
    dropout_rate: Any,
    options: Any,
    group: Any,
    layout: Any,
    return_lse: Any,
    timeout: Any,
) -> Any:
    """Check what does not depend on the library, and hand the call to the functions of the library of the query."""
    check_options(function, options)
    query, key, value = arrays
    name = library_name(common_namespace(query=query, key=key, value=value))
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
        raise TypeError(f"timeout must be a number of seconds, got {type(timeout).__name__}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    check_layout(layout)
    check_flag("return_lse", return_lse)
    if name not in _MODULES:
        raise TypeError(f"{function.__name__} computes with arrays of torch or JAX, got arrays of {name}")
    computed = getattr(import_module(_MODULES[name]), function.__name__)
    return computed(
        *(query, key, value, mask, dropout_rate, dict(options)),
        group=group,
        layout=layout,
        return_lse=return_lse,
        timeout=timeout,
    )


@_documented
def ring_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    group: Any,
    layout: Layout = "zigzag",
    return_lse: bool = False,
    timeout: float | None = None,
    **options: Unpack[AttentionOptions],
) -> ArrayT | tuple[ArrayT, ArrayT]:
    r"""Attend with the rows of each rank to the keys of all ranks, which arrive one shard after the other.

    .. math:: \mathrm{output}_r = \mathrm{merge}_s \, \mathrm{attention}(Q_r, K_s, V_s)

    While a rank computes with one shard of the keys, the next one is on its way, so that no rank ever holds them all. What
    masks exclude for all rows of a rank is neither computed nor, in torch, sent.

    Parameters
    ----------
    query : array
        ``(..., H, Sq / n, D)``: the shard of this rank of n, as `shard_sequence` gives it.
    key : array
        ``(..., Hkv, Sk / n, D)``, likewise.
    value : array
        ``(..., Hkv, Sk / n, Dv)``, likewise.
    mask : array or Mask, optional
        A rule is that of the whole. An array holds the rows of this rank, in the order of its shard, and all keys in the order
        of the sequence: ``(..., Sq / n, Sk)``; so does an array that is given as `bias`.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight. `rng` is then a seed or a JAX key, the same on all ranks, and the draw is
        that of one process.
    {shared}
    {options}

    Returns
    -------
    output : array
        ``(..., H, Sq / n, Dv)``, in the dtype of `query`: the rows of this rank of the output of the whole.
    lse : array
        ``(..., H, Sq / n)``, with `return_lse`: at least float32.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, or the library is neither torch nor JAX.
    ValueError
        If a shape or a value does not fit, or, in torch and on every rank, if ranks differ in shapes, dtypes, options or seed.
    TimeoutError
        In torch, if another rank does not answer in time.
    ConnectionError
        In torch, if another rank is gone.

    See Also
    --------
    gathered_attention : gathers all keys first.
    ulysses_attention : gives each rank all rows of some heads.
    merged_attention : for few rows, which all ranks hold, and many keys.

    Notes
    -----
    Offsets, lengths, masks as rules and biases as rules are those of the whole. Sinks count once. 16-bit arrays are
    merged in float32 and cast once. Gradients of what all ranks hold alike, such as sinks, are summed over the ranks:
    each rank has those of one process.

    References
    ----------
    Liu, Zaharia, Abbeel, "Ring attention with blockwise transformers for near-infinite context", ICLR 2024.

    Examples
    --------
    On a mesh of one device, as on one of many:

    >>> import jax
    >>> from jax.sharding import AxisType, PartitionSpec
    >>> from attention_xp import flash_attention
    >>> from attention_xp.distributed import ring_attention
    >>> mesh = jax.make_mesh((1,), ("ring",), axis_types=(AxisType.Auto,))
    >>> rows = PartitionSpec(None, None, "ring")
    >>> attend = jax.shard_map(
    ...     lambda q, k, v: ring_attention(q, k, v, group="ring", is_causal=True), mesh=mesh, in_specs=rows, out_specs=rows
    ... )
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 8, 4))
    >>> output = jax.jit(attend)(q, k, v)
    >>> bool(jax.numpy.allclose(output, flash_attention(q, k, v, is_causal=True), atol=1e-5))
    True
    """
    how = (group, layout, return_lse, timeout)
    return _called(ring_attention, (query, key, value), mask, dropout_rate, options, *how)  # type: ignore[no-any-return]


@_documented
def gathered_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    group: Any,
    layout: Layout = "zigzag",
    return_lse: bool = False,
    timeout: float | None = None,
    **options: Unpack[AttentionOptions],
) -> ArrayT | tuple[ArrayT, ArrayT]:
    r"""Gather the keys and values of all ranks, and attend to them with the rows of each rank.

    .. math:: \mathrm{output}_r = \mathrm{attention}(Q_r, [K_1, \dots, K_n], [V_1, \dots, V_n])

    Right where queries are many and keys are few: grouped heads, or short sequences on many ranks.

    Parameters
    ----------
    query, key, value, mask, dropout_rate
        As in `ring_attention`.
    {shared}
    {options}

    Returns
    -------
    output, lse
        As in `ring_attention`.

    Raises
    ------
    TypeError, ValueError, TimeoutError, ConnectionError
        As in `ring_attention`.

    References
    ----------
    Dubey et al., "The Llama 3 herd of models", 2024, section 3.3.2.

    Examples
    --------
    >>> import jax
    >>> from jax.sharding import AxisType, PartitionSpec
    >>> from attention_xp import flash_attention
    >>> from attention_xp.distributed import gathered_attention
    >>> mesh = jax.make_mesh((1,), ("ring",), axis_types=(AxisType.Auto,))
    >>> rows = PartitionSpec(None, None, "ring")
    >>> attend = jax.shard_map(
    ...     lambda q, k, v: gathered_attention(q, k, v, group="ring", is_causal=True), mesh=mesh, in_specs=rows, out_specs=rows
    ... )
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 8, 4))
    >>> output = jax.jit(attend)(q, k, v)
    >>> bool(jax.numpy.allclose(output, flash_attention(q, k, v, is_causal=True), atol=1e-5))
    True
    """
    how = (group, layout, return_lse, timeout)
    return _called(gathered_attention, (query, key, value), mask, dropout_rate, options, *how)  # type: ignore[no-any-return]


@_documented
def ulysses_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    group: Any,
    layout: Layout = "zigzag",
    return_lse: bool = False,
    timeout: float | None = None,
    **options: Unpack[AttentionOptions],
) -> ArrayT | tuple[ArrayT, ArrayT]:
    r"""Exchange the rows of some heads for all rows of fewer heads, attend, and exchange back.

    .. math:: \mathrm{output}_h = \mathrm{attention}(Q_h, K_h, V_h), \quad h \in \mathrm{heads}(r)

    Each rank computes ``H / n`` heads of the whole sequence. Where key/value heads are fewer than ranks, or not divisible,
    they are repeated.

    Where ranks are more than heads, or some are far from each other, they lie along two axes: n is then the number of those
    that exchange heads, as neighbours, and what they hold together is one shard of a ring.

    Parameters
    ----------
    query, key, value, mask, dropout_rate
        As in `ring_attention`; there must be a heads axis, and H divisible by the number of ranks that exchange heads.
    {shared}
    {options}

    Returns
    -------
    output, lse
        As in `ring_attention`.

    Raises
    ------
    TypeError, ValueError, TimeoutError, ConnectionError
        As in `ring_attention`.

    References
    ----------
    Jacobs et al., "DeepSpeed Ulysses: system optimizations for enabling training of extreme long sequence transformer
    models", 2023. Fang, Zhao, "USP: a unified sequence parallelism approach for long context generative AI", 2024.

    Examples
    --------
    >>> import jax
    >>> from jax.sharding import AxisType, PartitionSpec
    >>> from attention_xp import flash_attention
    >>> from attention_xp.distributed import ulysses_attention
    >>> mesh = jax.make_mesh((1,), ("ring",), axis_types=(AxisType.Auto,))
    >>> rows = PartitionSpec(None, None, "ring")
    >>> attend = jax.shard_map(
    ...     lambda q, k, v: ulysses_attention(q, k, v, group="ring", is_causal=True), mesh=mesh, in_specs=rows, out_specs=rows
    ... )
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 8, 4))
    >>> output = jax.jit(attend)(q, k, v)
    >>> bool(jax.numpy.allclose(output, flash_attention(q, k, v, is_causal=True), atol=1e-5))
    True
    """
    how = (group, layout, return_lse, timeout)
    return _called(ulysses_attention, (query, key, value), mask, dropout_rate, options, *how)  # type: ignore[no-any-return]


@_documented
def merged_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    group: Any,
    layout: Layout = "contiguous",
    return_lse: bool = False,
    timeout: float | None = None,
    **options: Unpack[AttentionOptions],
) -> ArrayT | tuple[ArrayT, ArrayT]:
    r"""Attend on each rank with all rows to the keys of the rank, and merge the outputs of all ranks.

    .. math:: \mathrm{output} = \mathrm{merge}_r \, \mathrm{attention}(Q, K_r, V_r)

    For decoding: what is sent does not depend on the number of keys.

    Parameters
    ----------
    query : array
        ``(..., H, Sq, D)``: all rows, the same on all ranks.
    key : array
        ``(..., Hkv, Sk / n, D)``: the shard of this rank.
    value : array
        ``(..., Hkv, Sk / n, Dv)``, likewise.
    mask : array or Mask, optional
        As in `flash_attention` on the whole: an array has all rows and all keys; so has an array that is given as `bias`.
    dropout_rate : float, default: 0.0
        As in `ring_attention`.
    {shared}
    {options}

    Returns
    -------
    output : array
        ``(..., H, Sq, Dv)``, in the dtype of `query`: all rows, the same on all ranks.
    lse : array
        ``(..., H, Sq)``, with `return_lse`: at least float32.

    Raises
    ------
    TypeError, ValueError, TimeoutError, ConnectionError
        As in `ring_attention`.

    Notes
    -----
    The gradient of the output is, as the output, expected to be the same on all ranks; then each rank has the
    gradients of one process, of the query and of all else.

    References
    ----------
    Dao, Haziza, Massa, Sizov, "Flash-decoding for long-context inference", 2023.

    Examples
    --------
    >>> import jax
    >>> from jax.sharding import AxisType, PartitionSpec
    >>> from attention_xp import flash_attention
    >>> from attention_xp.distributed import merged_attention
    >>> mesh = jax.make_mesh((1,), ("ring",), axis_types=(AxisType.Auto,))
    >>> whole, keys = PartitionSpec(), PartitionSpec(None, None, "ring")
    >>> attend = jax.shard_map(
    ...     lambda q, k, v: merged_attention(q, k, v, group="ring"), mesh=mesh, in_specs=(whole, keys, keys), out_specs=whole
    ... )
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 8, 4))
    >>> output = jax.jit(attend)(q, k, v)
    >>> bool(jax.numpy.allclose(output, flash_attention(q, k, v), atol=1e-5))
    True
    """
    how = (group, layout, return_lse, timeout)
    return _called(merged_attention, (query, key, value), mask, dropout_rate, options, *how)  # type: ignore[no-any-return]
