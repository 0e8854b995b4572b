"""Fixtures of the tests of the engine."""

import pytest

from attention_xp._engine.problem import known_calls


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another has found out about a kind of calls, with kernels of its own perhaps."""
    monkeypatch.setattr(known_calls, "_KNOWN", {})
