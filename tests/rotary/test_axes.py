"""Positions of several axes: time, height and width of Qwen2-VL, rows and columns of an image."""

from types import SimpleNamespace

import numpy as np
import pytest

from attention_xp import DynamicNTKScaling, axial_rotary_embedding, rotary_embedding
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import normal
from tests.rotary._cases import frequencies, over_heads, rotated

POSITIONS = np.random.default_rng(0).integers(0, 50, (3, 2, 5))


def by_sections(positions, sections, rotary_dim):
    """The angles, section by section."""
    axis = np.repeat(np.arange(len(sections)) % positions.shape[0], sections)
    return np.stack([positions[a] * f for a, f in zip(axis, frequencies(rotary_dim), strict=True)], axis=-1)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
@pytest.mark.parametrize("sections", [(2, 3, 3), (1, 1, 1, 1, 1, 1, 2), (6, 1, 1)], ids=str)
def test_every_section_follows_its_axis(library, make, sections, interleaved):
    x = normal(2, 3, 5, 18)
    expected = rotated(x, over_heads(by_sections(POSITIONS, sections, 16), x), interleaved)
    actual = rotary_embedding(make(x), make(POSITIONS), rotary_dim=16, sections=sections, interleaved=interleaved)
    assert_close(actual, expected, library)


def test_equal_axes_are_one(library, make):
    x, positions = make(normal(2, 3, 5, 16)), make(POSITIONS[0])
    same = make(np.stack([POSITIONS[0]] * 3))
    expected = to_numpy(rotary_embedding(x, positions))
    assert_close(rotary_embedding(x, same, sections=[2, 3, 3]), expected, library)


def test_positions_without_batch_axes(library, make):
    x = normal(2, 3, 5, 16)
    expected = rotated(x, by_sections(POSITIONS[:, 0], (2, 3, 3), 16))
    assert_close(rotary_embedding(make(x), make(POSITIONS[:, 0]), sections=(2, 3, 3)), expected, library)


def test_time_height_and_width_as_in_qwen2_vl(library, make):
    torch = pytest.importorskip("torch")
    qwen = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
    x = normal(2, 4, 5, 128).astype(np.float32)
    config = qwen.Qwen2VLTextConfig(
        hidden_size=512, num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )  # fmt: skip
    cos, sin = qwen.Qwen2VLRotaryEmbedding(config)(torch.tensor(x), torch.tensor(POSITIONS))
    q, _ = qwen.apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin)
    actual = rotary_embedding(make(x), make(POSITIONS), base=1e6, sections=(16, 24, 24))
    assert_close(actual, q.numpy(), library)


def test_interleaved_axes_as_in_qwen3_vl(library, make):
    torch = pytest.importorskip("torch")
    qwen = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
    x = normal(2, 4, 5, 128)
    angles = torch.tensor(POSITIONS)[..., None] * torch.tensor(frequencies(128))
    angles = qwen.Qwen3VLTextRotaryEmbedding.recomposition_frequencies(
        SimpleNamespace(mrope_section=[24, 20, 20]), angles
    )
    angles = angles[..., :64].numpy()  # they come twice, for both halves
    actual = rotary_embedding(make(x), make(POSITIONS), sections=(1,) * 60 + (4,))
    assert_close(actual, rotated(x, over_heads(angles, x)), library)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
def test_rows_and_columns(library, make, interleaved):
    x = normal(2, 3, 6, 17)
    rows, columns = np.divmod(np.arange(6), 3)
    angles = np.concatenate([rows[:, None] * frequencies(8), columns[:, None] * frequencies(8)], axis=-1)
    actual = axial_rotary_embedding(make(x), 2, 3, rotary_dim=16, interleaved=interleaved)
    assert_close(actual, rotated(x, angles, interleaved), library)


def test_rows_and_columns_as_in_the_vision_part_of_qwen2_vl(library, make):
    torch = pytest.importorskip("torch")
    qwen = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
    x = normal(6, 4, 80).astype(np.float32)  # (S, H, D)
    rows, columns = np.divmod(np.arange(6), 3)
    embedding = qwen.Qwen2VLVisionRotaryEmbedding(qwen.Qwen2VLVisionConfig(embed_dim=320, num_heads=4))
    cos, sin = embedding(torch.tensor(x), torch.tensor(np.stack([rows, columns], axis=-1)))
    expected, _ = qwen.apply_rotary_pos_emb_vision(torch.tensor(x), torch.tensor(x), cos, sin)
    actual = axial_rotary_embedding(make(np.moveaxis(x, 0, 1)), 2, 3)
    assert_close(actual, np.moveaxis(expected.numpy(), 0, 1), library)


def test_three_axes_of_a_video(library, make):
    x = normal(1, 2, 12, 14)
    grid = np.indices((2, 2, 3)).reshape(3, -1)
    widths = (4, 4, 6)
    angles = [p[:, None] * frequencies(w) for p, w in zip(grid, widths, strict=True)]
    actual = rotary_embedding(make(x), make(grid), sections=(2, 2, 3), axial=True)
    assert_close(actual, rotated(x, np.concatenate(angles, axis=-1)), library)


def test_scaled_axes(library, make):
    x = normal(1, 2, 12, 16)
    rows, columns = np.divmod(np.arange(12), 6)
    stretched = frequencies(8, 10000.0 * (2.0 * 6 / 4 - 1.0) ** (8 / 6))
    angles = np.concatenate([rows[:, None] * stretched, columns[:, None] * stretched], axis=-1)
    actual = axial_rotary_embedding(make(x), 2, 6, scaling=DynamicNTKScaling(2.0, 4))
    assert_close(actual, rotated(x, angles), library)
