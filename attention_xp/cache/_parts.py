"""Whether the arrays of a cache fit each other, which may be anybody's."""

from typing import Any

from attention_xp._backend.dtypes import dtype_name
from attention_xp._checks.arrays import shapes

__all__ = ["check_parts"]

_LETTERS = {
    "key": "(B, Hkv, C, D)",
    "value": "(B, Hkv, C, Dv)",
    "key_pages": "(num_pages, Hkv, page_size, D)",
    "value_pages": "(num_pages, Hkv, page_size, Dv)",
    "block_table": "(B, any)",
    "lengths": "(B,)",
    "references": "(num_pages,)",
}


def check_parts(cache: Any) -> None:
    """Refuse a cache whose arrays do not fit each other or count in few bits; what is no array at all is refused elsewhere.

    Arrays broadcast, and reading stops at the end of a buffer: what does not fit would mostly go unnoticed.
    """
    parts: list[Any] = [getattr(array, "shape", None) for array in cache]
    if None in parts:
        return
    key, value, *numbers = parts
    fits = len(key) == len(value) == 4 and key[:3] == value[:3]
    if len(numbers) == 1:
        fits = fits and numbers[0] == key[:1]
    else:
        table, lengths, references = numbers
        fits = fits and len(table) == 2 and table[:1] == lengths and references == key[:1]
    if not fits:
        letters = ", ".join(f"{name} {_LETTERS[name]}" for name in cache._fields)
        raise ValueError(
            f"the arrays of the {type(cache).__name__} do not fit each other: expected {letters}, {shapes(**cache._asdict())}"
        )
    for name in cache._fields[2:]:  # in fewer bits, positions or pages may overflow, and without a sign there is no -1
        kind = dtype_name(getattr(cache, name).dtype)
        if kind not in ("int32", "int64"):
            raise TypeError(f"cache.{name} must be int32 or int64, got {kind}")
