"""The example against the reference implementation of its model, and its command line."""

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_embeddings as example
from sentence_embeddings import BACKENDS, MAX_TOKENS, Model, encode, gelu, main, open_backend, read_sentences

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

FILE = Path(__file__).with_name("sentences.txt")
GROUPS = [group.splitlines() for group in FILE.read_text(encoding="utf-8").split("\n\n")]
PAIRS = [(group[0], group[1]) for group in GROUPS if len(group) == 2]
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """The sentences of the file and one that is truncated."""
    return [*read_sentences(FILE), "word after word, " * MAX_TOKENS]


def from_transformers(attention: str) -> tuple[Any, Any]:
    """The tokenizer and the model of transformers, with an implementation of attention."""
    transformers = pytest.importorskip("transformers")
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(example.model_directory()),
        "local_files_only": True,
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    return tokenizer, transformers.BertModel.from_pretrained(**source, attn_implementation=attention).eval()


@pytest.fixture(scope="module")
def reference(sentences: list[str]) -> list[Any]:
    """The last hidden states (S, D) of each sentence alone, hence without padding."""
    torch = pytest.importorskip("torch")
    tokenizer, model = from_transformers("eager")
    with torch.no_grad():
        inputs = (tokenizer(s, truncation=True, max_length=MAX_TOKENS, return_tensors="pt") for s in sentences)
        return [model(**i).last_hidden_state[0].numpy() for i in inputs]


def test_the_model_of_transformers_with_attention_from_here(sentences: list[str], reference: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("attention_xp.interop.transformers").register()
    tokenizer, model = from_transformers("attention_xp")
    batch = tokenizer(sentences, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")
    with torch.no_grad():
        padded = model(**batch).last_hidden_state.numpy()
    for hidden, expected in zip(padded, reference, strict=True):
        np.testing.assert_allclose(hidden[: len(expected)], expected, rtol=0.0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=[*BACKENDS, "array_api_strict"])
def model(request: pytest.FixtureRequest) -> Model:
    """The model on each backend; on the strictest implementation of the standard too, for CuPy's sake."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "array_api_strict", "array_api_strict")
        try:
            open_backend(request.param)
        except SystemExit as reason:
            pytest.skip(str(reason))
        return Model.load(request.param)


def on_host(x: Any) -> Any:
    return x.get() if hasattr(x, "get") else np.from_dlpack(x)


def test_embeddings(model: Model, sentences: list[str], reference: list[Any]) -> None:
    means = np.stack([hidden.mean(axis=0) for hidden in reference])
    expected = means / np.linalg.norm(means, axis=-1, keepdims=True)
    embeddings = model.embed(sentences)
    assert type(embeddings) is type(model.weights.tokens)
    np.testing.assert_allclose(on_host(embeddings), expected, rtol=0.0, atol=TOLERANCE)


def test_last_hidden_states(model: Model, sentences: list[str], reference: list[Any]) -> None:
    padded = on_host(encode(model.weights, model.tokens(sentences[:16]), model.config))
    for hidden, expected in zip(padded, reference[:16], strict=True):
        np.testing.assert_allclose(hidden[: len(expected)], expected, rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-7), ("float64", 2.2e-7)])
def test_gelu(dtype: str, tolerance: float) -> None:
    x = np.linspace(-12.0, 12.0, 4801, dtype=dtype)
    exact = [0.5 * v * math.erfc(-v / math.sqrt(2.0)) for v in x.tolist()]
    y = gelu(x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, exact, rtol=0.0, atol=tolerance)


def neighbours(output: str) -> dict[str, list[tuple[float, str]]]:
    """Read what the command printed."""
    found: dict[str, list[tuple[float, str]]] = {}
    for line in output.splitlines():
        if line.startswith("  "):
            cosine, sentence = line.split(maxsplit=1)
            found[next(reversed(found))].append((float(cosine), sentence))
        else:
            found[line] = []
    return found


def test_paraphrases_are_mutual_nearest_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(FILE), "--neighbours", "2"])
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress where there is no terminal
    found = neighbours(captured.out)
    assert list(found) == read_sentences(FILE)
    assert len(PAIRS) >= 15
    for a, b in PAIRS:
        assert (found[a][0][1], found[b][0][1]) == (b, a)
    for (nearest, _), (second, _) in found.values():
        assert 1.0 >= nearest >= second >= -1.0


def test_more_neighbours_than_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "few.txt"
    file.write_text("One line.\n\nOne line.\n", encoding="utf-8")
    main([str(file), "--neighbours", "7"])
    assert capsys.readouterr().out == 2 * "One line.\n   1.000  One line.\n"


def run(*arguments: str, text: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, example.__file__, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, input=text.encode(), env=environment, capture_output=True, check=False)


def test_standard_input() -> None:
    text = "\ufeffA dog barks.\r\n \r\n猫 [PAD]\r\nA dog is barking.\n"
    result = run("--backend", "numpy", "--neighbours", "1", text=text)
    assert (result.returncode, result.stderr) == (0, b"")
    found = neighbours(result.stdout.decode())
    assert list(found) == ["A dog barks.", "猫 [PAD]", "A dog is barking."]
    assert found["A dog barks."][0][1] == "A dog is barking."


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        ([], b"", "standard input: expected at least 2 sentences, one per line, got 0"),
        ([], b"\n \n", "standard input: expected at least 2 sentences, one per line, got 0"),
        ([], b"Alone.", "standard input: expected at least 2 sentences, one per line, got 1"),
        ([], b"\xff\xfe\nb", "standard input cannot be read"),
        (["no such file"], b"", "no such file cannot be read"),
        (["--device", "moon"], b"a\nb", "numpy on moon cannot be used"),
    ],
)
def test_one_line_that_says_what_is_wrong(
    arguments: list[str], text: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["--neighbours", "0"], "expected a positive integer, got '0'"),
        (["--neighbours", "three"], "expected a positive integer, got 'three'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("backend", BACKENDS)
def test_absent_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, BACKENDS[backend], None)
    with pytest.raises(SystemExit, match=rf"^error: {backend} cannot be used: [^\n]+$"):
        open_backend(backend)
