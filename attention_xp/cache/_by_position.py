"""Masks and biases that are arrays, of which the columns are positions, as the keys of a cache lie."""

from collections.abc import Callable
from typing import Any, NamedTuple

from attention_xp._backend.libraries import device
from attention_xp._backend.rows import along
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.values import within
from attention_xp._scores.region import own_array
from attention_xp._typing import Array, Namespace
from attention_xp.masks._mask import with_arrays

__all__ = ["Given"]


class Given(NamedTuple):
    """The mask and the bias of a call, and how many positions their arrays speak of; ``None`` for all."""

    mask: Any
    bias: Any
    reach: int | None

    @classmethod
    def of(cls, xp: Namespace, query: Array, mask: Any, bias: Any) -> "Given":
        """Find the arrays, those inside of rules as well, and the shortest of them."""
        if mask is None and bias is None:
            return _NOTHING
        widths: list[int] = []

        def seen(array: Array) -> Array:
            array = own_array(xp, array, query)
            if array.ndim > 0 and array.shape[-1] != 1:  # an axis of length 1 is broadcast
                widths.append(int(array.shape[-1]))
            return array

        mask, bias = with_arrays(mask, seen), with_arrays(bias, seen)
        return cls(mask, bias, min(widths, default=None))

    def refuse_beyond(self, most: int, what: str) -> None:
        """Refuse arrays that have fewer columns than so many, which are as many as something else."""
        if self.reach is not None and most > self.reach:
            raise ValueError(
                f"an array mask or bias goes by position: expected at least {most} columns, as many as {what}, got {self.reach}"
            )

    def columns(self, xp: Namespace, start: int, stop: int) -> "Given":
        """Return the columns of some positions; where arrays are shorter, they are filled up."""
        return self._each(lambda a: _filled(xp, a[..., min(start, a.shape[-1]) : min(stop, a.shape[-1])], stop - start))

    def at(self, xp: Namespace, positions: Array) -> "Given":
        """Return the columns of positions (B, n), or (n,), which may lie outside."""
        return self._each(lambda a: _looked_up(xp, a, positions))

    def _each(self, change: Callable[[Array], Array]) -> "Given":
        if self.reach is None:
            return self

        def changed(array: Array) -> Array:
            return array if array.ndim == 0 or array.shape[-1] == 1 else change(array)

        return Given(with_arrays(self.mask, changed), with_arrays(self.bias, changed), self.reach)


_NOTHING = Given(None, None, None)


def _filled(xp: Namespace, array: Array, width: int) -> Array:
    """Return an array with so many columns: behind its own, False or 0, which nobody attends."""
    short = width - array.shape[-1]
    if short <= 0:
        return array
    shape = (*array.shape[:-1], short)
    no = xp.zeros(shape, dtype=array.dtype, device=device(array))
    return xp.concat([array, no], axis=-1)


def _looked_up(xp: Namespace, array: Array, positions: Array) -> Array:
    if array.shape[-1] == 0:  # where there is no position, no key stands
        array = _filled(xp, array, 1)
    last = array.shape[-1] - 1
    if positions.ndim == 1:
        return xp.take(array, within(xp, positions, 0, last), axis=-1)
    array = filled_up(xp, array, 4)
    index = filled_up(xp, within(xp, positions, 0, last)[:, None, None, :], 4)
    lead = (index.shape[0], *array.shape[1:3])
    array, index = (xp.broadcast_to(a, (*lead, a.shape[-1])) for a in (array, index))
    return along(xp, array, index, axis=-1)
