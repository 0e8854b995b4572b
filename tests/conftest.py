"""Fixtures of the tests of the package."""

import pytest
from hypothesis import settings

IMPLS = ("dense", "tiled")

settings.register_profile("attention_xp", deadline=None, derandomize=True, database=None)
settings.load_profile("attention_xp")


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    """Every implementation that promises every option."""
    return str(request.param)
