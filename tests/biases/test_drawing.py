"""Pictures of biases in notebooks."""

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from attention_xp.biases import Bias
from attention_xp.biases._bias import sampled
from tests.biases._cases import CASES

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", CASES)
def test_values_without_a_call(make, name):
    case = CASES[name]
    values = sampled(case.build(make), 6)
    known = {"of a user": 1, "with exclusions": 1}.get(name, case.heads)  # whose heads nobody has told
    np.testing.assert_allclose(values, case.table(1, known, range(6), range(6))[0], rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_notebooks_show_a_picture(name):
    case = CASES[name]
    bias = case.build(np.asarray)
    html = bias._repr_html_()
    assert len(html) < 150_000
    svg = ET.fromstring(html).find(f"{SVG}svg")
    assert svg.find(f"{SVG}title").text.startswith(repr(bias))
    if name == "with exclusions":
        squares = list(svg.iter(f"{SVG}rect"))
        assert len(squares) == sum((q + k) % 5 != 0 for q in range(32) for k in range(32))
        return
    curves = [path.get("d") for path in svg.iter(f"{SVG}path") if path.get("fill") == "none"]
    assert len(curves) == (1 if name == "of a user" else case.heads)
    for h, curve in enumerate(curves):
        heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", curve)]
        expected = [case.says(0, h, max(-d, 0), max(d, 0)) for d in range(-31, 32)]
        assert np.corrcoef(heights, expected)[0, 1] < -0.99  # upwards is less, in SVG


class Gap(Bias):
    """Excludes the third key before each query."""

    def __init__(self):
        self.text = "<b>"

    def values(self, region):
        return region.xp.where(region.q_idx - region.kv_idx == 3, -np.inf, region.floating(region.kv_idx * 0))


def test_what_is_excluded_leaves_a_gap():
    svg = ET.fromstring(Gap()._repr_html_()).find(f"{SVG}svg")
    (curve,) = [path.get("d") for path in svg.iter(f"{SVG}path") if path.get("fill") == "none"]
    assert curve.count("M") == 2


class OfOneLength(Bias):
    """Holds an array for all pairs."""

    def __init__(self, table):
        self.table = table

    def values(self, region):
        return region.look_up(self.table)


def test_a_bias_of_another_length_has_no_picture():
    assert OfOneLength(np.ones((5, 5)))._repr_html_() is None
    assert OfOneLength(np.ones((32, 32)))._repr_html_().startswith("<figure")
