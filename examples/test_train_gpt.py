"""The three models against each other and against finite differences, and the command line."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_gpt
from gpt.in_numpy import Model
from gpt.text import Text
from gpt.training import BACKENDS, open_model, train, write
from gpt.weights import Config, Layer, Weights, initial_weights
from train_gpt import SONNETS, TOLERANCE, difference, main

SMALL = Config(layers=2, heads=2, width=32, context=16, batch=4)
TEXT = Text.read(SONNETS)


def in_float64(weights: Weights) -> Weights:
    def wide(w: Any) -> Any:
        return w.astype(np.float64)

    return Weights(*map(wide, weights[:-1]), Layer(*map(wide, weights.layers)))


@pytest.fixture
def weights() -> Weights:
    """Weights in float64, far enough from zero that no gradient is tiny."""
    drawn = in_float64(initial_weights(SMALL, len(TEXT.alphabet), seed=3))
    for w in drawn.arrays():
        w[:] *= 5
    return drawn


@pytest.fixture(params=[b for b in BACKENDS if b != "numpy"])
def other(request: pytest.FixtureRequest) -> str:
    """The libraries that differentiate by themselves."""
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command train a small model."""
    monkeypatch.setattr(train_gpt, "Config", lambda: SMALL)


def test_sonnets() -> None:
    sonnets = TEXT.characters.split("\n\n")
    assert [len(sonnet.strip("\n").splitlines()) for sonnet in sonnets] == 36 * [14]
    assert TEXT.decode(TEXT.encode(TEXT.characters)) == TEXT.characters


def test_batches() -> None:
    (ids, targets), (more, _) = (next(TEXT.batches(SMALL, seed)) for seed in (1, 2))
    assert ids.shape == targets.shape == (SMALL.batch, SMALL.context)
    assert (ids != more).any()
    np.testing.assert_array_equal(next(TEXT.batches(SMALL, 1))[0], ids)
    for window, following in zip(ids, targets, strict=True):
        assert TEXT.decode([*window, following[-1]]) in TEXT.characters
        np.testing.assert_array_equal(window[1:], following[:-1])


@pytest.mark.parametrize("place", range(len(Weights._fields) - 1 + len(Layer._fields)))
def test_gradients_are_finite_differences(weights: Weights, place: int) -> None:
    batch = next(TEXT.batches(SMALL, seed=4))
    model = Model(weights, SMALL)
    gradient = model.gradients(*batch)[1].arrays()[place]
    w = model.weights.arrays()[place]
    assert gradient.shape == w.shape
    direction = np.random.default_rng(5).standard_normal(w.shape)
    direction /= np.linalg.norm(direction)
    losses = []
    for step in (1e-5, -2e-5):  # there, and back to the other side
        w += step * direction
        losses.append(model.gradients(*batch)[0])
    np.testing.assert_allclose(np.sum(gradient * direction), (losses[0] - losses[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_gradients_are_those_of_torch(weights: Weights) -> None:
    pytest.importorskip("torch")
    batch = next(TEXT.batches(SMALL, seed=4))
    reference = importlib.import_module("gpt.in_torch").Model(weights, SMALL)
    loss, gradients = Model(weights, SMALL).gradients(*batch)
    np.testing.assert_allclose(reference.step(*batch), loss, rtol=1e-12)
    for ours, theirs in zip(gradients.arrays(), reference.weights.arrays(), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_same_curve_and_same_text_in_every_library(other: str) -> None:
    curves, texts = [], []
    for backend in ("numpy", other):
        model = open_model(backend, initial_weights(SMALL, len(TEXT.alphabet), seed=0), SMALL)
        curves.append(list(train(model, TEXT, SMALL, 50, seed=0)))
        texts.append("".join(write(model, TEXT, SMALL, "Shall", 30, temperature=0.7, seed=0)))
    assert difference(curves) <= TOLERANCE
    assert np.mean(curves[0][-5:]) < curves[0][0] - 0.5
    assert texts[0] == texts[1]


def test_learns_by_heart() -> None:
    text = Text("abcdefgh" * 20, "abcdefgh")
    model = Model(initial_weights(SMALL, 8, seed=0), SMALL)
    assert list(train(model, text, SMALL, 150, seed=0))[-1] < 0.1
    assert "".join(write(model, text, SMALL, "cd", 20, temperature=0.1, seed=0)) == "efghabcdefghabcdefgh"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_future_is_unseen(backend: str) -> None:
    pytest.importorskip(backend)
    model = open_model(backend, initial_weights(SMALL, len(TEXT.alphabet), seed=0), SMALL)
    ids = np.arange(16)[None, :]
    logits, others = model.logits(ids), model.logits(np.where(ids < 7, ids, 20))
    assert logits.shape == (1, SMALL.context, len(TEXT.alphabet))
    np.testing.assert_allclose(logits[:, :7], others[:, :7], rtol=0.0, atol=1e-6)
    assert (np.abs(logits[:, 7:] - others[:, 7:]).max(axis=-1) > 1e-3).all()


@pytest.mark.usefixtures("small")
def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "loss.png"
    assert main(["--steps", "3", "--characters", "20", "--plot", str(picture), "--prompt", "O!"]) == 0
    output, errors = capsys.readouterr()
    assert re.fullmatch(r"numpy: loss 4\.\d{3} -> [34]\.\d{3} in 3 steps of \d+ ms\n\nO![\s\S]{20}\n", output)
    assert errors == ""  # no bar where there is no terminal
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small")
def test_compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for library in BACKENDS:
        pytest.importorskip(library)
    assert main(["--compare", "--steps", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*BACKENDS, "largest difference of the losses"]
    for apart in (1.0, float("nan")):
        monkeypatch.setattr(train_gpt, "difference", lambda curves, apart=apart: apart)
        assert main(["--compare", "--steps", "1"]) == 1


def test_difference() -> None:
    assert difference([[1.0, 2.0, 3.0], [1.0, 2.5, 3.0], [1.25, 2.25, 3.0]]) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no such file"], "no such file cannot be read"),
        (["--prompt", "Größe"], "the prompt has characters that .* has not: 'ßö'"),
    ],
)
def test_one_line_that_says_what_is_wrong(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
        main(arguments)


def test_text_is_too_short(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Too short.", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^error: .*: expected more than 64 characters, got 10$"):
        main([str(file), "--prompt", "Too"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cupy"], "invalid choice: 'cupy'"),
        (["--backend", "torch", "--compare"], "not allowed with argument"),
        (["--steps", "0"], "expected a positive integer, got '0'"),
        (["--temperature", "nan"], "expected a positive number, got 'nan'"),
        (["--seed", "-1"], "--seed is at least 0, got -1"),
        (["--prompt", ""], "--prompt needs a character at least"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_absent_library(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"gpt.in_{backend}", raising=False)
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(SystemExit, match=rf"^error: {backend} cannot be used: [^\n]+$"):
        main(["--backend", backend])
