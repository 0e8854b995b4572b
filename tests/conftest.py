"""Fixtures of the tests of the package."""

import pytest

IMPLS = ("dense", "tiled")


def with_tiles(*tiles: tuple[int, int] | None) -> pytest.MarkDecorator:
    """Run a test on every implementation, with each tile where there are any."""
    return pytest.mark.parametrize(("impl", "tile"), [("dense", None), *(("tiled", tile) for tile in tiles)], ids=str)


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    """Every implementation that promises every option."""
    return str(request.param)
