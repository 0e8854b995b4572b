"""The parameters of torch's modules in our form."""

import torch

from attention_xp._multi_head_params import MultiHeadParams

__all__ = ["multi_head_params"]


def multi_head_params(module: torch.nn.MultiheadAttention) -> MultiHeadParams[torch.Tensor]:
    r"""Return the parameters of ``torch.nn.MultiheadAttention`` for `multi_head_attention`.

    A linear layer of torch computes :math:`x W^T + b`, ours :math:`x w + b`: each matrix is the transpose of the module's,
    on the same memory. Gradients reach the module, and a step of its optimiser shows here.

    Parameters
    ----------
    module : torch.nn.MultiheadAttention
        With widths of its own for keys and values (``kdim``, ``vdim``) or without, with ``bias`` or without. Of its other
        settings, `multi_head_attention` is given ``num_heads=module.num_heads``, ``d_model=module.embed_dim`` and in
        training ``dropout_rate=module.dropout``. It is always batch first: the inputs of a module with
        ``batch_first=False``, ``(S, B, E)``, go in as ``x.transpose(0, 1)``, and its output comes out so.

    Returns
    -------
    MultiHeadParams
        `w_q` ``(E, E)``, `w_k` ``(kdim, E)``, `w_v` ``(vdim, E)``, `w_o` ``(E, E)``; the biases ``(E,)``, or None.

    Raises
    ------
    TypeError
        If `module` is of another class.
    NotImplementedError
        If the module has ``add_bias_kv`` or ``add_zero_attn``: keys and values of its own, for which there is no place; or
        if it is the quantizable one, which keeps its projections elsewhere.

    Notes
    -----
    The masks of the module say True where a key may *not* be attended, the opposite of ours: ``key_padding_mask`` ``(B, Sk)``
    goes in as ``mask=~key_padding_mask[:, None, None, :]``.

    Examples
    --------
    >>> import torch
    >>> from attention_xp import multi_head_attention
    >>> from attention_xp.interop.torch import multi_head_params
    >>> module = torch.nn.MultiheadAttention(8, num_heads=2, batch_first=True)
    >>> x = torch.ones(1, 3, 8)
    >>> output, weights = multi_head_attention(x, x, x, 2, 8, params=multi_head_params(module))
    >>> torch.allclose(output, module(x, x, x)[0])
    True
    """
    if not isinstance(module, torch.nn.MultiheadAttention):
        raise TypeError(f"module must be a torch.nn.MultiheadAttention, got {type(module).__name__}")
    if hasattr(module, "linear_Q"):
        raise NotImplementedError(
            "linear_Q, linear_K and linear_V of the quantizable module take the place of the projections that are read here"
        )
    if module.bias_k is not None:
        raise NotImplementedError(
            "add_bias_kv: the module appends a key and a value of its own; append them to the inputs"
        )
    if module.add_zero_attn:
        raise NotImplementedError(
            "add_zero_attn: a key of zeros has no place in MultiHeadParams; sinks of 0 do the same"
        )
    E, joined = module.embed_dim, module.in_proj_weight
    own = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    w_q, w_k, w_v = own if joined is None else joined.split(E)
    b_q, b_k, b_v = (None, None, None) if module.in_proj_bias is None else module.in_proj_bias.split(E)
    return MultiHeadParams(w_q.mT, w_k.mT, w_v.mT, module.out_proj.weight.mT, b_q, b_k, b_v, module.out_proj.bias)
