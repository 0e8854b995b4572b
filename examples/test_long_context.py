"""All ways to attend in a window give the same states, and the rule is never read as an array."""

import re

import long_context
import pytest
import torch
from long_context import WAYS, main, make_model, ways_to_attend

from attention_xp.interop.transformers._carried_mask import CarriedMask


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the mask have no numbers."""
    monkeypatch.setattr(CarriedMask, "dense", None)


def test_same_states() -> None:
    long_context.register()
    model, tokens = make_model(128, 16, 300), torch.randint(256, (2, 300))
    ways = ways_to_attend(model, tokens)
    assert tuple(ways) == WAYS
    expected = ways["sdpa"]()
    for read in ways.values():
        assert float((read() - expected).abs().max()) < 1e-5
    wider = ways_to_attend(make_model(128, 17, 300), tokens)["rule"]()
    assert float((wider - expected).abs().max()) > 0.01


def test_the_command_says_how_long_each_takes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--length", "2048", "--rounds", "1", "--width", "128"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(WAYS)
    assert re.search(r" 1\.0 times the rule", lines[0])
