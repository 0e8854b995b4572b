"""The table of what each kernel can says what the kernels say."""

import pytest

from attention_xp._engine.problem.options import DEFAULTS
from tests._capabilities import COLUMNS, PAGE, REASON, ROWS, cells, rows_of
from tests.test_option_pairs import FACTORS

ABOUT_CALLS = {"key_offset", "key_positions", "item_ids", "head_ids", "scale", "impl", "tile"}


@pytest.mark.backends("numpy", "torch", "jax", "strict")
def test_table_says_what_the_kernels_say(library):
    page = rows_of(PAGE.read_text("utf-8"))
    assert list(page) == list(ROWS)
    columns = [name for name, backend in COLUMNS.items() if backend is library]
    for column in columns:
        for row, (kernels, reason) in cells(library).items():
            assert page[row][column] == kernels
            assert column != "PyTorch" or page[row][REASON] == reason


def test_every_option_that_kernels_may_refuse_has_a_row():
    named = {name for options in FACTORS.values() for name in options}
    assert set(DEFAULTS) - named == ABOUT_CALLS
