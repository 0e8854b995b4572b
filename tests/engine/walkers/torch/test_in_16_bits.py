"""Tensors in 16 bits are widened and rounded as torch does it, whoever does it."""

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.walkers.torch import in_16_bits

pytestmark = pytest.mark.backends("torch")


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch):
    monkeypatch.setattr(in_16_bits, "_MANY", 0)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_as_torch_does_it(library, kind):
    import torch  # noqa: PLC0415

    narrow = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1, 700)).astype(np.float32)).to(
        getattr(torch, kind)
    )
    arrays = [narrow, narrow[:, :, ::2], narrow.expand(3, 4, 700), narrow[:0], narrow.mT]
    for array, wide in zip(arrays, in_16_bits.widened(arrays), strict=True):
        assert torch.equal(wide, array.float())
        rounded = in_16_bits.rounded(wide * 1.7, array.dtype)
        assert torch.equal(rounded, (wide * 1.7).to(array.dtype))
    assert in_16_bits.widened([]) == []


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_call(library, kind):
    import torch  # noqa: PLC0415

    whole = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 1, 2, 300, 16)).astype(np.float32))
    narrow = whole.to(getattr(torch, kind))
    options = {"is_causal": True, "window": (50, 0), "impl": "tiled"}
    output, expected = flash_attention(*narrow, **options), flash_attention(*narrow.float(), **options)
    assert torch.equal(output, expected.to(narrow.dtype))
