"""Attention with the signature of ``keras.ops.dot_product_attention``, and the parameters of Keras' layers."""

from typing import Any

import keras

from attention_xp import MultiHeadParams, flash_attention as attend
from attention_xp.interop._border import as_flag, check_broadcast, converted, named_as

__all__ = ["dot_product_attention", "multi_head_params"]

_THEIRS = {
    "softcap": "attn_logits_soft_cap",
    "impl='fused'": "flash_attention=True",
    "impl='dense' and impl='tiled'": "flash_attention=False",
}
_BACKENDS = ("numpy", "torch", "jax")
_IMPLEMENTATIONS: dict[bool | None, Any] = {None: "auto", True: "fused", False: "dense"}


@named_as(_THEIRS)
def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
    is_causal: bool = False,
    flash_attention: bool | None = None,
    attn_logits_soft_cap: float | None = None,
) -> Any:
    r"""Attend as ``keras.ops.dot_product_attention`` does, on Keras' NumPy, torch and JAX backends.

    .. math:: \mathrm{output} = \mathrm{softmax}(\mathrm{scale} \; Q K^T + \mathrm{bias}) V

    All backends honour all arguments; in Keras, each has some that it refuses.

    Parameters
    ----------
    query : tensor
        ``(B, T, N, H)``. Like the others, what Keras makes a tensor of, or a ``KerasTensor`` of a functional model.
    key, value : tensor
        ``(B, S, K, H)`` and ``(B, S, K, Hv)``; ``K`` divides ``N``. What all three promote to is computed.
    bias : tensor, optional
        Is added to the scores; broadcasts to ``(B, N, T, S)``.
    mask : tensor, optional
        Broadcasts likewise. Of whatever dtype it is, what is not 0 may be attended.
    scale : float, optional
        Factor of the scores. Default: ``1 / sqrt(H)``.
    is_causal : bool, default: False
        Query ``t`` attends keys up to ``t``; both count from 0.
    flash_attention : bool, optional
        True: the kernel of the array library or an error. False: the formula, with all scores in memory. Default: chosen
        by size and device.
    attn_logits_soft_cap : float, optional
        Replaces a score ``s`` by ``cap * tanh(s / cap)``, as the kernel does that Keras runs on TPU.

    Returns
    -------
    tensor
        ``(B, T, N, Hv)``, in the dtype that the inputs promote to.

    Raises
    ------
    NotImplementedError
        If Keras runs on another backend.
    TypeError
        If query, key and value promote to no floating dtype.
    ValueError
        If a shape does not fit, or `flash_attention` is True and there is no such kernel for the call.

    Notes
    -----
    A row that may attend nothing is 0; Keras gives the mean of all values.

    References
    ----------
    ``keras.ops.dot_product_attention`` in the documentation of Keras.

    Examples
    --------
    >>> import keras
    >>> from attention_xp.interop.keras import dot_product_attention
    >>> x = keras.random.normal((2, 5, 4, 8), seed=0)
    >>> output = dot_product_attention(x, x, x, is_causal=True)
    >>> bool(keras.ops.max(abs(output - keras.ops.dot_product_attention(x, x, x, is_causal=True))) < 1e-5)
    True
    """
    if flash_attention is not None:
        flash_attention = as_flag("flash_attention", flash_attention)
    options = as_flag("is_causal", is_causal), flash_attention, attn_logits_soft_cap
    if any(isinstance(x, keras.KerasTensor) for x in (query, key, value)):
        return _Attention(*options).symbolic_call(query, key, value, bias=bias, mask=mask, scale=scale)
    return _attend(query, key, value, bias, mask, scale, *options)


@keras.saving.register_keras_serializable(package="attention_xp", name="DotProductAttention")
class _Attention(keras.Operation):  # type: ignore[misc]
    """Attention as a node of a functional model."""

    def __init__(
        self,
        is_causal: bool = False,
        flash_attention: bool | None = None,
        attn_logits_soft_cap: float | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.options = is_causal, flash_attention, attn_logits_soft_cap

    def call(self, query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, scale: Any = None) -> Any:
        """Compute it."""
        return _attend(query, key, value, bias, mask, scale, *self.options)

    def compute_output_spec(self, query: Any, key: Any, value: Any, **others: Any) -> Any:  # noqa: ARG002
        """Say what will be computed."""
        _check_shapes(query, key, value)
        dtype = keras.backend.result_type(query.dtype, key.dtype, value.dtype)
        return keras.KerasTensor((*query.shape[:-1], value.shape[-1]), dtype=dtype)


def _attend(
    query: Any, key: Any, value: Any, bias: Any, mask: Any, scale: Any, is_causal: Any, is_fused: Any, softcap: Any
) -> Any:
    """Attend with tensors of the backend, or what it makes tensors of."""
    _check_backend()
    convert = keras.ops.convert_to_tensor
    query, key, value = converted(convert, query=query, key=key, value=value)
    _check_shapes(query, key, value)
    (mask,) = (None,) if mask is None else converted(convert, mask=mask)
    (bias,) = (None,) if bias is None else converted(convert, bias=bias)
    (B, T, N, _), S = query.shape, key.shape[1]
    check_broadcast("(B, N, T, S)", (B, N, T, S), bias=bias, mask=mask)
    dtype = keras.backend.result_type(query.dtype, key.dtype, value.dtype)
    q, k, v = (keras.ops.swapaxes(keras.ops.cast(x, dtype), 1, 2) for x in (query, key, value))  # (B, K, S, H)
    output = attend(
        q,
        k,
        v,
        None if mask is None else keras.ops.cast(mask, "bool"),
        bias=None if bias is None else keras.ops.cast(bias, dtype),
        is_causal=is_causal,
        query_offset=0,
        scale=scale,
        softcap=softcap,
        impl=_IMPLEMENTATIONS[is_fused],
    )
    return keras.ops.swapaxes(output, 1, 2)  # (B, N, T, Hv) -> (B, T, N, Hv)


def _check_backend() -> None:
    """Refuse backends whose tensors no function here takes."""
    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        raise NotImplementedError(f"backend {backend} of Keras is none of those here: {', '.join(_BACKENDS)}")


def _check_shapes(query: Any, key: Any, value: Any) -> None:
    """Refuse shapes of tensors, or of a functional model, whose batch and lengths may be None."""
    q, k, v = (tuple(x.shape) for x in (query, key, value))
    if not (len(q) == len(k) == len(v) == 4 and k[1:3] == v[1:3] and k[3] == q[3] and q[2] % max(k[2], 1) == 0):
        raise ValueError(
            "query, key and value do not fit: expected (B, T, N, H), (B, S, K, H) and (B, S, K, Hv), N a multiple of K, "
            f"got {q}, {k} and {v}"
        )


def multi_head_params(
    layer: keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention,
) -> MultiHeadParams[Any]:
    """Return the projections of a layer for `attention_xp.multi_head_attention`.

    What else the layer does is said in that call: the numbers of heads, masks and dropout. The tensors are those of the layer
    at the time of the call, of Keras' backend, in the dtype in which the layer computes, which is that of the inputs as well.

    Parameters
    ----------
    layer : keras.layers.MultiHeadAttention or keras.layers.GroupQueryAttention
        Built: it was called, or its ``build`` was.

    Returns
    -------
    MultiHeadParams
        `w_q` is ``(query width, N * H)``, `w_k` is ``(key width, K * H)``, `w_v` is ``(value width, K * Hv)`` and `w_o` is
        ``(N * Hv, output width)``; biases are ``None`` without `use_bias`.

    Raises
    ------
    TypeError
        If `layer` is of another class.
    ValueError
        If it is not built.
    NotImplementedError
        If more than projections and options of the call make its output: `use_gate`, `sliding_window`, `attention_axes`
        other than the sequence, an `output_shape` of several axes, weights that are quantised; or if Keras runs on a
        backend that is not known here.

    Examples
    --------
    >>> import keras
    >>> from attention_xp import multi_head_attention
    >>> from attention_xp.interop.keras import multi_head_params
    >>> layer = keras.layers.GroupQueryAttention(head_dim=4, num_query_heads=4, num_key_value_heads=2)
    >>> x = keras.random.normal((2, 6, 16), seed=0)
    >>> expected = layer(x, x)
    >>> output, _ = multi_head_attention(x, x, x, 4, 16, num_kv_heads=2, params=multi_head_params(layer))
    >>> bool(keras.ops.max(abs(output - expected)) < 1e-5)
    True
    """
    if not isinstance(layer, keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention):
        raise TypeError(
            f"layer must be a keras.layers.MultiHeadAttention or GroupQueryAttention, got {type(layer).__name__}"
        )
    if not layer.built:
        raise ValueError("layer is not built, so that it has no parameters: call it, or its build, first")
    _check_backend()
    _refuse_layer(layer)
    dtype = layer.compute_dtype
    (w_q, b_q), (w_k, b_k), (w_v, b_v) = (
        _arrays(dense, dtype) for dense in (layer._query_dense, layer._key_dense, layer._value_dense)
    )
    w_o, b_o = _arrays(layer._output_dense, dtype)
    w_q, w_k, w_v = (keras.ops.reshape(w, (w.shape[0], -1)) for w in (w_q, w_k, w_v))  # (in, K, H) -> (in, K * H)
    w_o = keras.ops.reshape(w_o, (-1, w_o.shape[-1]))  # (N, Hv, out) -> (N * Hv, out)
    b_q, b_k, b_v = (b if b is None else keras.ops.reshape(b, (-1,)) for b in (b_q, b_k, b_v))
    return MultiHeadParams(w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o)


def _arrays(dense: Any, dtype: Any) -> tuple[Any, Any]:
    """Return kernel and bias of a projection."""
    if dense.quantization_mode is not None:
        raise NotImplementedError(
            f"quantization_mode of the layer is {dense.quantization_mode!r}: expected weights as they are"
        )
    return keras.ops.cast(dense.kernel, dtype), None if dense.bias is None else keras.ops.cast(dense.bias, dtype)


def _refuse_layer(layer: Any) -> None:
    """Refuse layers whose output does not follow from their projections and from options of the call."""
    options = layer.get_config()
    if options["use_gate"]:
        raise NotImplementedError("use_gate multiplies the heads by a gate, which parameters do not hold")
    if options["sliding_window"] is not None:
        raise NotImplementedError(
            "sliding_window is no parameter: take those of a layer without it, and attend with window=(n - 1, n - 1)"
        )
    if isinstance(layer, keras.layers.MultiHeadAttention):
        if len(options["output_shape"] or ()) > 1:
            raise NotImplementedError(f"output_shape must have one axis, got {options['output_shape']}")
        rank = len(layer.query_dense.equation.partition(",")[0])
        if tuple(layer.attention_axes) != (rank - 2,):
            raise NotImplementedError(
                f"attention_axes must be the last axis but one, that of the sequence, got {layer.attention_axes} of {rank} axes"
            )
