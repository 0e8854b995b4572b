"""Attention as a graph of cuDNN's front end: its tensors, their layouts, and the operation."""

import math
from typing import Any, NamedTuple

__all__ = ["Layout", "Spec", "build"]

_DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16"}


class Layout(NamedTuple):
    """How an array lies in memory; strides are in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "Layout":
        """Return the layout of an array without gaps."""
        return cls(shape, tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))

    @property
    def dense(self) -> "Layout":
        """The layout of a copy."""
        return Layout.of(self.shape)

    @property
    def normal(self) -> "Layout":
        """The same layout; along axes of length 1, where strides mean nothing, with those of a copy, which cuDNN takes."""
        pairs = zip(self.shape, self.strides, self.dense.strides, strict=True)
        return Layout(self.shape, tuple(dense if n == 1 else own for n, own, dense in pairs))


class Spec(NamedTuple):
    """All that a graph depends on: calls that agree in it share one."""

    device: int
    dtype: str
    scale: float
    query: Layout  # (B, H, Sq, D)
    key: Layout
    value: Layout
    bias: tuple[int, int, int, int] | None  # (B or 1, H or 1, Sq, Sk)
    limits: tuple[int | None, int | None]  # how many keys to its left and right a query may attend
    ends_at_end: bool  # whether the diagonal is aligned bottom-right; else top-left
    has_lengths: bool
    has_stats: bool

    @property
    def inputs(self) -> dict[str, Layout]:
        """What is read."""
        layouts = {"query": self.query, "key": self.key, "value": self.value}
        if self.bias is not None:
            layouts["bias"] = Layout.of(self.bias)
        if self.has_lengths:
            each = Layout.of((self.query.shape[0], 1, 1, 1))
            layouts |= {"query_lengths": each, "key_lengths": each}
        return layouts

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """What is written: the output and, if wanted, the log-sum-exp."""
        rows = self.query.shape[:-1]
        return {"output": (*rows, self.value.shape[-1])} | ({"stats": (*rows, 1)} if self.has_stats else {})


def build(cudnn: Any, spec: Spec, handle: Any) -> tuple[Any, dict[str, Any]]:
    """Return a graph and its tensors by name."""
    kinds: Any = cudnn.data_type
    narrow = getattr(kinds, _DTYPES[spec.dtype])
    dtypes = {"query_lengths": kinds.INT32, "key_lengths": kinds.INT32, "stats": kinds.FLOAT}
    wide = {"intermediate_data_type": kinds.FLOAT, "compute_data_type": kinds.FLOAT}
    graph = cudnn.pygraph(io_data_type=narrow, **wide, handle=handle)
    tensors = {
        name: graph.tensor(name=name, dim=layout.shape, stride=layout.strides, data_type=dtypes.get(name, narrow))
        for name, layout in spec.inputs.items()
    }
    left, right = spec.limits
    ends = cudnn.diagonal_alignment
    results = graph.sdpa(
        name="attention",
        q=tensors["query"],
        k=tensors["key"],
        v=tensors["value"],
        attn_scale=spec.scale,
        bias=tensors.get("bias"),
        use_padding_mask=spec.has_lengths,
        seq_len_q=tensors.get("query_lengths"),
        seq_len_kv=tensors.get("key_lengths"),
        diagonal_alignment=ends.BOTTOM_RIGHT if spec.ends_at_end else ends.TOP_LEFT,
        diagonal_band_left_bound=None if left is None else left + 1,  # the distance of the first excluded key
        diagonal_band_right_bound=right,
        generate_stats=spec.has_stats,
    )
    for (name, shape), tensor in zip(spec.outputs.items(), results, strict=False):
        tensor.set_output(True).set_dim(shape).set_stride(Layout.of(shape).strides)
        tensor.set_data_type(dtypes.get(name, narrow))
        tensors[name] = tensor
    return graph, tensors
