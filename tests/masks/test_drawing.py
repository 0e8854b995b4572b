"""Pictures of a wanted size, on streams that cannot show everything, and in notebooks."""

import io
import os
import subprocess
import sys
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from attention_xp.masks import BlockMask, CausalMask, FunctionMask, LengthMask, PrefixMask


def test_a_picture_of_a_given_size():
    assert CausalMask().draw(3, 5).splitlines() == ["CausalMask(): 3 queries x 5 keys", "█····", "██···", "███··"]
    assert CausalMask().draw(2, 4, 2).splitlines()[1:] == ["███·", "████"]
    assert CausalMask().draw(64, 4).splitlines()[1:3] == ["█▒··", "███▒"]
    assert CausalMask().draw(0, 4) == "CausalMask(): 0 queries x 4 keys"
    with pytest.raises(ValueError, match="Sk must be at least 0, got -1"):
        CausalMask().draw(3, -1)
    with pytest.raises(TypeError, match="Sq must be an int, got float"):
        CausalMask().draw(3.0, 1)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_plain_characters_where_the_stream_has_no_others(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    lines = ((CausalMask() | PrefixMask(40)).draw(64, 64), FunctionMask(greater), CausalMask())
    stream.writelines(f"{line!s}\n" for line in lines)
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)
    assert "#" * 20 + "." * 12 in text
    assert "+" in text
    assert set(text) <= set(map(chr, range(256)))
    monkeypatch.undo()
    assert "█" in str(CausalMask())


def greater(b, h, q_idx, kv_idx):
    """A function that will be given a name that is not ASCII."""
    return q_idx > kv_idx


greater.__name__ = "größer als β"


def test_a_stream_without_an_encoding_shows_everything(monkeypatch):
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert "█" in str(CausalMask())


def test_python_whose_output_is_redirected_on_windows():
    program = "from attention_xp.masks import *; print(CausalMask()); print(~StridedMask(3) | PrefixMask(90))"
    command = [sys.executable, "-X", "utf8=0", "-c", program]
    result = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True, check=True)
    assert result.stdout.decode("cp1252").splitlines()[1] == "#" + "." * 31


MASKS = {
    "causal": CausalMask(),
    "blocks": BlockMask(np.eye(5, dtype=bool), 33),
    "of a lambda": FunctionMask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx + h, heads=3),
    "lengths": LengthMask(np.asarray([3, 7])),
    "nothing": ~BlockMask(np.zeros((0, 0), bool), 1),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_notebooks_show_a_picture(mask):
    html = mask._repr_html_()
    assert len(html) < 100_000
    figure = ET.fromstring(html)  # well-formed, so that names of functions are escaped
    (svg,) = figure.findall("{http://www.w3.org/2000/svg}svg")
    assert svg.find("{http://www.w3.org/2000/svg}title").text.startswith(repr(mask))
    lines = str(mask).splitlines()[1:]
    squares = [square.attrib for square in svg.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(squares) == sum(character != "·" for line in lines for character in line)
    for square in squares:
        assert (square["fill-opacity"] == "1") is (lines[int(square["y"])][int(square["x"])] == "█")
