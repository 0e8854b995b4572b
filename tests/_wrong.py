"""Wrong calls as data: what is called, which error comes, and what its text must contain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from attention_xp import flash_attention
from tests._backends import Backend

EITHER = (TypeError, ValueError)


class Arrays:
    """Makes the arrays of a wrong call: ``a(2, 8, 10, 64)`` is full of ones."""

    def __init__(self, library: Backend) -> None:
        self.library, self.xp = library, library.namespace()

    def __call__(self, *shape: int, dtype: str = "float32") -> Any:
        return self.library.array(np.ones(shape), dtype)

    def other(self, *shape: int) -> Any:
        """An array of the same library in another floating dtype."""
        return self(*shape, dtype=next(d for d in self.library.dtypes() if d != "float32"))

    def foreign(self, *shape: int) -> Any:
        """An array of another library."""
        return (Backend.STRICT if self.library.like("numpy") else Backend.NUMPY).array(np.ones(shape))

    def attend(
        self, axes: int = 4, keys: int = 5, function: Callable[..., Any] = flash_attention, **options: Any
    ) -> Any:
        """Call attention with good inputs, (2, 4, 5, 8) or a part of that shape, and the given options."""
        lead = {2: (), 3: (2,), 4: (2, 4), 5: (3, 2, 4)}[axes]
        return function(self(*lead, 5, 8), self(*lead, keys, 8), self(*lead, keys, 8), **options)


class Wrong(NamedTuple):
    """A call, the type of its error, and what the text must contain."""

    call: Callable[[Arrays], Any]
    error: type[Exception] | tuple[type[Exception], ...]
    words: tuple[str, ...]


def check(wrong: Wrong, library: Backend) -> None:
    """Make a wrong call and read the error."""
    with pytest.raises(wrong.error) as raised:
        wrong.call(Arrays(library))
    text = str(raised.value)
    assert [word for word in wrong.words if word not in text] == [], text
