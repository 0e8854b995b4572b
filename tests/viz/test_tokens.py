"""Every character of a token can be seen."""

import pytest

from attention_xp.viz._tokens import shown


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("cat", "cat"),
        ("", "(empty)"),
        (" the", "␣the"),
        ("a b  ", "a b␣␣"),
        ("  ", "␣␣"),
        ("\n\t\x00\x7f\x85", r"\n\t\x00\x7f\x85"),
        ("\u202etxt\u200b\u2028\ufeff\xad", r"\u202etxt\u200b\u2028\ufeff\xad"),
        ("\ud800", r"\ud800"),
        ("</script>", "</script>"),
        ("\N{FAMILY}\u200d\N{MAN}", "\N{FAMILY}\u200d\N{MAN}"),
        ("かな ελ", "かな ελ"),
    ],
    ids=ascii,
)
def test_what_is_shown(token, expected):
    assert shown(token) == expected
    assert shown(token).encode()  # no half of a pair is left
