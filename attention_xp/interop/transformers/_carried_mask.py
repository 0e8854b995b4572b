"""A mask that travels through a model as a tensor and holds a rule in place of numbers."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map_only
from transformers.masking_utils import eager_mask

from attention_xp._typing import Array
from attention_xp.masks import CausalMask, Mask

__all__ = ["CarriedMask"]


class CarriedMask(torch.Tensor):  # type: ignore[misc]
    """A tensor ``(B, 1, Sq, Sk)`` without storage, which carries the rule that it stands for.

    Attention asks it for the rule. Every operation of torch gets the numbers instead, those of ``eager``: 0 where a query may
    attend a key, and the least number of the dtype elsewhere.

    Parameters
    ----------
    rule : Mask
        What the mask allows; keys are counted from 0.
    query_offset : int
        The position of the first query, likewise.
    arguments : mapping
        Those of ``transformers.masking_utils.eager_mask``, which makes the numbers.
    """

    rule: Mask
    query_offset: int
    arguments: Mapping[str, Any]
    _numbers: Array | None
    is_exposed: bool  # whether the numbers may have been changed in place

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, rule: Mask, query_offset: int, arguments: Mapping[str, Any]) -> Self:
        """Make a tensor without storage."""
        shape = arguments["batch_size"], 1, arguments["q_length"], arguments["kv_length"]
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=arguments["dtype"], device=arguments["device"]
        )
        made.rule, made.query_offset, made.arguments = rule, query_offset, arguments
        made._numbers, made.is_exposed = None, False
        return made

    def dense(self) -> Array:
        """Return the numbers."""
        if self._numbers is None:
            with torch.no_grad():
                self._numbers = eager_mask(**self.arguments)
        return self._numbers

    # What torch does with the storage of a tensor, it does with that of the numbers.

    def numpy(self, *, force: bool = False) -> Any:
        """Return the numbers as an array of NumPy."""
        return self.dense().numpy(force=force)

    def tolist(self) -> Any:
        """Return the numbers as lists."""
        return self.dense().tolist()

    def share_memory_(self) -> Array:
        """Return the numbers in memory that processes share."""
        return self.dense().clone().share_memory_()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.dense().__array__(*args, **kwargs)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.dense().__dlpack__(**kwargs)

    def __deepcopy__(self, memo: Any) -> "CarriedMask":
        return CarriedMask(self.rule, self.query_offset, self.arguments)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute with the numbers, but for what recomputation does with all that it keeps."""
        if func is torch.ops.aten.detach.default:
            return args[0]
        gives_alias = func._schema.is_mutable or any(r.alias_info is not None for r in func._schema.returns)

        def read(mask: "CarriedMask") -> Array:
            mask.is_exposed |= gives_alias
            return mask.dense()

        args, kwargs = tree_map_only(CarriedMask, read, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """Tell a compiler what the tensor is made of, where the mask was made outside of the code that it compiles."""
        self.dense()
        return ["_numbers"], (tuple(self.shape), self.dtype, self.device)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Array], made_of: Any, outer_size: Any, outer_stride: Any
    ) -> "CarriedMask":
        """Return a mask that has numbers alone."""
        (B, _, Sq, Sk), dtype, device = made_of
        sizes = {"batch_size": B, "q_length": Sq, "kv_length": Sk, "dtype": dtype, "device": device}
        mask = CarriedMask(CausalMask(), 0, sizes)
        mask._numbers, mask.is_exposed = inner["_numbers"], True
        return mask

    def __repr__(self, *, tensor_contents: Callable[..., Any] | None = None) -> str:
        return f"CarriedMask({self.rule!r}, query_offset={self.query_offset}, shape={tuple(self.shape)})"
