"""A stand-in for cuDNN's front end: it computes what the documentation of the real one says, in NumPy."""

import ctypes
from types import SimpleNamespace

import numpy as np

__all__ = ["FrontEnd", "NotSupportedError"]


class NotSupportedError(Exception):
    """What the front end raises where no kernel can do it; it is no RuntimeError."""


class Tensor:
    """The description of an array."""

    def __init__(self, dim=None, stride=None, data_type=None):
        self.dim, self.stride, self.data_type, self.is_output = dim, stride, data_type, False

    def set_output(self, flag):
        self.is_output = flag
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, data_type):
        self.data_type = data_type
        return self

    def at(self, address):
        """The array that begins at an address."""
        dtype = np.dtype(self.data_type)
        last = sum((n - 1) * stride for n, stride in zip(self.dim, self.stride, strict=True))
        memory = (ctypes.c_uint8 * ((last + 1) * dtype.itemsize)).from_address(address)
        strides = [stride * dtype.itemsize for stride in self.stride]
        return np.ndarray(self.dim, dtype, memory, strides=strides)


class Graph:
    """One operation."""

    def __init__(self, log, declines, **options):
        self.log, self.declines = log, declines

    def tensor(self, *, name, dim, stride, data_type):
        return Tensor(dim, stride, data_type)

    def sdpa(self, **options):
        self.options, self.results = options, [Tensor(), Tensor() if options["generate_stats"] else None]
        return self.results

    def build(self, heuristics):
        self.log.append(("build", self.options))
        if self.declines:
            raise NotSupportedError(self.declines)

    def get_workspace_size(self):
        return 16

    def execute(self, pointers, workspace, handle):
        self.log.append(("execute", sorted(pointers.values()), workspace, handle))
        arrays = {tensor: tensor.at(address) for tensor, address in pointers.items()}
        inputs = {name: arrays.get(x, x) if isinstance(x, Tensor) else x for name, x in self.options.items()}
        for tensor, computed in zip(self.results, attend(**inputs), strict=True):
            if tensor is not None:
                arrays[tensor][...] = computed


def attend(
    *,
    q,
    k,
    v,
    attn_scale,
    bias,
    use_padding_mask,
    seq_len_q,
    seq_len_kv,
    diagonal_alignment,
    diagonal_band_left_bound: int | None,
    diagonal_band_right_bound: int | None,
    **_,
):
    """Attend in float64, with NaN wherever nothing is promised."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = attn_scale * q @ k.swapaxes(-1, -2) + (0.0 if bias is None else bias.astype(np.float64))
    row, column = np.ogrid[: q.shape[2], : k.shape[2]]
    diagonal = row + (k.shape[2] - q.shape[2] if diagonal_alignment == "BOTTOM_RIGHT" else 0)
    out = np.zeros(scores.shape, bool)
    if diagonal_band_left_bound is not None:  # "masks columns at or before row_idx - left_bound"
        out |= column <= diagonal - diagonal_band_left_bound
    if diagonal_band_right_bound is not None:  # "masks columns beyond row_idx + right_bound"
        out |= column > diagonal + diagonal_band_right_bound
    if use_padding_mask:
        out |= (row >= seq_len_q) | (column >= seq_len_kv)
    scores = np.where(out, -np.inf, scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        return weights / total @ v, top + np.log(total)


class FrontEnd:
    """The module, and a log of what it was asked for."""

    data_type = SimpleNamespace(HALF="float16", FLOAT="float32", INT32="int32")
    diagonal_alignment = SimpleNamespace(TOP_LEFT="TOP_LEFT", BOTTOM_RIGHT="BOTTOM_RIGHT")
    heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815  # its name there

    def __init__(self):
        self.log, self.declines, self.version = [], "", 91002

    def backend_version(self):
        return self.version

    def create_handle(self):
        self.log.append(("handle",))
        return "handle"

    def set_stream(self, handle, stream):
        self.log.append(("stream", handle, stream))

    def pygraph(self, *, handle, **options):
        return Graph(self.log, self.declines, **options)

    def logged(self, kind):
        """What was asked for, of one kind."""
        return [entry[1:] for entry in self.log if entry[0] == kind]
