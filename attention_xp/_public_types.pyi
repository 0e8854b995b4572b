from typing import Any, Generic as Generic, Protocol

from typing_extensions import TypeVar

# An array of any library: numpy.ndarray, torch.Tensor, jax.Array, cupy.ndarray, ...
class Array(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Any: ...

ArrayT = TypeVar("ArrayT", bound=Array)  # noqa: PYI001
# The arrays that a tuple holds, which an annotation need not tell.
HeldT = TypeVar("HeldT", bound=Array, default=Any)  # noqa: PYI001
