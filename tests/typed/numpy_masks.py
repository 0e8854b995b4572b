"""Rules for who attends whom: combined, measured, written."""

from typing import Any

import numpy as np

from attention_xp import flash_attention, scaled_dot_product_attention
from attention_xp.biases import AlibiBias, Bias
from attention_xp.masks import (
    CausalMask,
    FunctionMask,
    LengthMask,
    Mask,
    Region,
    SegmentMask,
    Span,
    WindowMask,
    longformer_mask,
)


class EveryOther(Mask):
    """Keys at even positions."""

    def allowed(self, region: Region) -> Any:
        """Tell which pairs are allowed."""
        return region.kv_idx % 2 == 0

    def reach(self, span: Span) -> tuple[Any, Any]:
        """Tell whether rectangles are empty or full: two keys in a row are one of each."""
        return span.k_lo + span.k_lo % 2 <= span.k_hi, False


class Near(Bias):
    """Scores fall with the distance."""

    def values(self, region: Region) -> Any:
        """Return what is added to the scores."""
        return -region.floating(abs(region.q_idx - region.kv_idx))


def same_half(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Whether query and key are in the same half."""
    return (q_idx < 8) == (kv_idx < 8)


def choose(kind: str) -> Mask:
    """Return a rule by its name."""
    rules: dict[str, Mask] = {
        "causal": CausalMask(),
        "local": CausalMask() & WindowMask(4, 0),
        "documents": CausalMask() & SegmentMask(np.repeat(np.arange(4), 4)[None, :]),
        "padded": LengthMask(np.asarray([16, 9])) | ~EveryOther(),
        "sparse": longformer_mask(2, is_global=np.arange(16) == 0),
        "halves": FunctionMask(same_half),
    }
    return rules[kind]


def main() -> None:
    """Attend under every rule."""
    q = k = v = np.ones((2, 4, 16, 8))
    slopes = np.asarray([0.5, 0.25, 0.125, 0.0625])
    for kind in ("causal", "local", "documents", "padded", "sparse", "halves"):
        output = flash_attention(q, k, v, choose(kind), bias=AlibiBias(slopes), window=(None, 8))
        assert output.shape == (2, 4, 16, 8)
    _, weights = scaled_dot_product_attention(q, k, v, mask=choose("local"))
    assert flash_attention(q, k, v, bias=Near()).shape == (2, 4, 16, 8)
    allowed: bool = choose("local").any_allowed((0, 4), (4, 16))
    assert not allowed
    density: float = choose("local").density(16, 16)
    assert abs(density - float((weights > 0.0).mean())) < 1e-12
    assert np.asarray(choose("causal").to_array(16, 16)).sum() == 136


if __name__ == "__main__":
    main()
