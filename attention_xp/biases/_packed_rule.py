"""A bias with numbers for each of several packed sequences."""

from dataclasses import dataclass

from attention_xp._scores.region import Region
from attention_xp._typing import Array, Namespace
from attention_xp.biases._bias import Bias

__all__ = ["SequenceBias"]


@dataclass(frozen=True, eq=False)
class SequenceBias(Bias):
    """A rule for a batch of sequences, applied to one of them, or to packed ones: each row by its own sequence."""

    inner: Bias
    count: int
    item: int | None  # None: packed

    @property
    def may_exclude(self) -> bool:  # type: ignore[override]
        """Whether the inner rule may exclude."""
        return self.inner.may_exclude

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the inner rule."""
        return self.inner.arrays

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        """Check the rule as one for a batch of all sequences."""
        self.inner.check(xp, query, (self.count,), heads)

    def values(self, region: Region) -> Array:
        """Return the values for the scores of the sequence, as an item of a batch of all sequences."""
        return self.inner.values(self._of(region))

    def bound(self, region: Region) -> float:
        """Return the bound for the sequence."""
        return self.inner.bound(self._of(region))

    def vjp(self, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Return the gradients of the inner rule."""
        return self.inner.vjp(self._of(region), grad_scores)

    def _of(self, region: Region) -> Region:
        return region if self.item is None else region.in_sequence(self.item, self.count)
