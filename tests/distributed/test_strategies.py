"""The public functions of the strategies: what they take, and what they refuse whatever the library."""

import inspect
import itertools

import numpy as np
import pytest

from attention_xp import distributed, flash_attention
from tests.distributed._calls import COVERING, kinds_of, possible_pairs

STRATEGIES = ["ring", "gathered", "ulysses", "merged"]
strategies = pytest.mark.parametrize("strategy", STRATEGIES)


@strategies
def test_signatures(strategy):
    found = dict(inspect.signature(getattr(distributed, f"{strategy}_attention")).parameters)
    own = {name: found.pop(name) for name in ("group", "layout", "timeout")}
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own.values())
    layout = "contiguous" if strategy == "merged" else "zigzag"
    assert [parameter.default for parameter in own.values()] == [inspect.Parameter.empty, layout, None]
    ought = dict(inspect.signature(flash_attention).parameters)
    del ought["output_dtype"]
    assert [(p.name, p.default, p.kind) for p in found.values()] == [
        (p.name, p.default, p.kind) for p in ought.values()
    ]


@strategies
@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (TypeError, "arrays of torch or JAX, got arrays of numpy", {}),
        (TypeError, "no argument 'windows'", {"windows": 3}),
        (TypeError, "timeout must be a number of seconds, got str", {"timeout": "1"}),
        (ValueError, "timeout must be positive, got 0", {"timeout": 0}),
        (ValueError, "layout must be one of 'zigzag', 'contiguous', got 'ring'", {"layout": "ring"}),
        (TypeError, "return_lse", {"return_lse": 1}),
    ],
)
def test_wrong_arguments_are_refused(strategy, error, words, options):
    x = np.zeros((1, 2, 4, 4))
    with pytest.raises(error, match=words):
        getattr(distributed, f"{strategy}_attention")(x, x, x, group="ranks", **options)


def test_combined_calls_have_every_pair_of_options():
    assert {pair for name in COVERING for pair in itertools.combinations(kinds_of(name), 2)} == possible_pairs()


def test_a_list_is_no_array():
    with pytest.raises(TypeError, match="query must be an array, got list"):
        distributed.ring_attention([[1.0]], np.zeros((1, 1)), np.zeros((1, 1)), group="ranks")
