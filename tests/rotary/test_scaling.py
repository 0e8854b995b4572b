"""Scalings of rotary position embeddings against transformers, and by their definitions."""

import dataclasses
import importlib
import math

import numpy as np
import pytest

import attention_xp as ax
from attention_xp import rotary_cache, rotary_embedding
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import normal
from tests.rotary._cases import frequencies, over_heads, rope_types, rotated, theirs

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT, LONG = [1.0 + 0.05 * i for i in range(8)], [1.5 + 0.5 * i for i in range(8)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}

# Rotary width 16, base 100, 128 positions in the configuration.
CASES = {
    "default": (None, {"rope_type": "default"}),
    "linear": (ax.LinearScaling(3.0), {"rope_type": "linear", "factor": 3.0}),
    "proportional": (ax.LinearScaling(3.0), {"rope_type": "proportional", "factor": 3.0}),
    "dynamic": (ax.DynamicNTKScaling(2.0, 128), {"rope_type": "dynamic", "factor": 2.0}),
    "yarn": (ax.YarnScaling(4.0, 32), YARN),
    "yarn betas": (ax.YarnScaling(4.0, 32, 4.0, 0.5), YARN | {"beta_fast": 4.0, "beta_slow": 0.5}),
    "yarn attention_factor": (ax.YarnScaling(4.0, 32, attention_factor=0.7), YARN | {"attention_factor": 0.7}),
    "yarn mscale": (
        ax.YarnScaling(4.0, 32, mscale=1.5, mscale_all_dim=0.5), YARN | {"mscale": 1.5, "mscale_all_dim": 0.5}
    ),
    "yarn mscale alone": (ax.YarnScaling(4.0, 32, mscale=1.5), YARN | {"mscale": 1.5}),
    "yarn whole": (ax.YarnScaling(4.0, 32, truncate=False), YARN | {"truncate": False}),
    "yarn below 1": (ax.YarnScaling(0.5, 32), YARN | {"factor": 0.5}),
    "yarn without a ramp": (
        ax.YarnScaling(4.0, 1), YARN | {"original_max_position_embeddings": 1}
    ),
    "longrope": (ax.LongRopeScaling(SHORT, LONG, 128, factor=4.0), LONGROPE | {"factor": 4.0}),
    "longrope below 1": (ax.LongRopeScaling(SHORT, LONG, 128, factor=0.5), LONGROPE | {"factor": 0.5}),
    "longrope attention_factor": (
        ax.LongRopeScaling(SHORT, LONG, 128, attention_factor=1.3), LONGROPE | {"factor": 4.0, "attention_factor": 1.3}
    ),
    "llama3": (
        ax.Llama3Scaling(8.0, 1.0, 4.0, 64),
        LLAMA3 | {"rope_type": "llama3", "original_max_position_embeddings": 64},
    ),
}  # fmt: skip

cases = pytest.mark.parametrize(("scaling", "rope"), CASES.values(), ids=CASES)
SCALINGS = {name: scaling for name, (scaling, _) in CASES.items() if scaling} | {"ntk": ax.NTKScaling(4.0)}


@pytest.mark.backends("torch")
def test_every_scaling_of_transformers_has_a_case():
    assert rope_types() == {rope["rope_type"] for _, rope in CASES.values()}


@pytest.mark.parametrize("length", [7, 128, 129, 500])
@cases
def test_frequencies_are_those_of_transformers(library, make, xp, device, scaling, rope, length):
    found, factor = theirs(rope, length)
    angles = np.arange(length)[:, None] * found
    for positions, where in ((length, {"xp": xp, "device": device}), (make(np.arange(length)), {})):
        cache = rotary_cache(positions, 16, base=100.0, scaling=scaling, **where)
        # Their frequencies are rounded to float32, and the error grows with the position.
        tolerances = {"rtol": 0.0, "atol": 2e-6 + 2e-7 * length}
        assert_close(cache.cos, factor * np.cos(angles), library, **tolerances)
        assert_close(cache.sin, factor * np.sin(angles), library, **tolerances)


@pytest.mark.parametrize("length", [9, 200])
@cases
def test_the_embedding_is_that_of_llama(library, make, scaling, rope, length):
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    x = normal(2, 3, length, 16).astype(np.float32)
    found, factor = theirs(rope, length)
    angles = torch.arange(length)[:, None] * torch.tensor(np.concatenate([found, found]))
    cos, sin = (factor * f(angles).float()[None] for f in (torch.cos, torch.sin))
    expected, _ = llama.apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin)
    actual = rotary_embedding(make(x), base=100.0, scaling=scaling)
    assert_close(actual, expected.numpy(), library, rtol=0, atol=2e-4)


def test_phi3_tells_the_factor_by_lengths(xp, device):
    for length in (128, 129):
        found, factor = theirs(LONGROPE, length, max_positions=512, original_positions=128)
        scaling = ax.LongRopeScaling(SHORT, LONG, 128, factor=512 / 128)
        cache = rotary_cache(length, 16, base=100.0, scaling=scaling, xp=xp, device=device)
        expected = factor * np.cos(np.arange(length)[:, None] * found)
        np.testing.assert_allclose(to_numpy(cache.cos), expected, atol=5e-5)


def test_ntk_changes_the_base(library, make):
    x = normal(5, 8)
    expected = rotated(x, np.arange(5)[:, None] * frequencies(8, 10000.0 * 4.0 ** (8 / 6)))
    assert_close(rotary_embedding(make(x), scaling=ax.NTKScaling(4.0)), expected, library)


@pytest.mark.parametrize("scaling", [ax.NTKScaling(4.0), ax.DynamicNTKScaling(4.0, 2)])
def test_a_single_pair_has_nothing_to_stretch(library, make, scaling):
    x = normal(5, 2)
    assert_close(rotary_embedding(make(x), scaling=scaling), rotated(x, np.arange(5.0)[:, None]), library)
    actual = rotary_embedding(make(x), make(np.arange(5)), scaling=scaling)
    assert_close(actual, rotated(x, np.arange(5.0)[:, None]), library)


@pytest.mark.parametrize(
    "positions", [np.arange(9), np.asarray([[0, 1], [2, 300]]), np.zeros((3, 0), np.int32)], ids=str
)
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_the_largest_given_position_tells_the_length(library, make, scaling, positions):
    length = int(positions.max()) + 1 if positions.size else 1
    cos, sin = rotary_cache(length, 16, base=100.0, scaling=scaling, dtype="float64")
    actual = rotary_cache(make(positions), 16, base=100.0, scaling=scaling)
    assert_close(actual.cos, cos[positions], library, atol=1e-4)
    assert_close(actual.sin, sin[positions], library, atol=1e-4)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_every_scaling_together_with_partial_width_pairing_and_sections(library, make, scaling):
    x, positions = normal(2, 3, 4, 20), np.random.default_rng(0).integers(0, 200, (2, 2, 4))
    length = int(positions.max()) + 1
    unit = rotary_cache(length, 16, base=100.0, scaling=scaling, dtype="float64")
    angles = np.unwrap(np.arctan2(unit.sin, unit.cos), axis=0)
    angles = np.concatenate([angles[positions[0], :5], angles[positions[1], 5:]], axis=-1)
    amplitude = math.hypot(unit.cos[0, 0], unit.sin[0, 0])
    expected = rotated(x, over_heads(angles, x), interleaved=True, amplitude=amplitude)
    actual = rotary_embedding(
        make(x), make(positions), base=100.0, rotary_dim=16, interleaved=True, scaling=scaling, sections=(5, 3)
    )
    assert_close(actual, expected, library, atol=2e-4)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("scaling", [ax.DynamicNTKScaling(2.0, 16), ax.LongRopeScaling([1.0] * 4, [3.0] * 4, 16)])
def test_given_positions_steer_no_python(library, make, scaling):
    jax = importlib.import_module("jax")
    traces = []

    def turn(x, positions):
        traces.append(positions)
        return rotary_embedding(x, positions, scaling=scaling)

    compiled = jax.jit(turn)
    x = make(normal(3, 8))
    for last in (15, 16, 400):
        positions = np.asarray([0, 1, last])
        cos, sin = (t[positions] for t in rotary_cache(last + 1, 8, scaling=scaling))
        expected = rotary_embedding(to_numpy(x), cache=ax.RotaryCache(cos, sin))
        assert_close(compiled(x, make(positions)), expected, library, atol=1e-4)
    assert len(traces) == 1


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_scalings_are_values(scaling):
    fields = {f.name: getattr(scaling, f.name) for f in dataclasses.fields(scaling)}
    assert type(scaling)(**fields) == scaling
    assert hash(type(scaling)(**fields)) == hash(scaling)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scaling.factor = 2.0
