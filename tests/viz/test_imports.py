"""Plotting libraries are imported when something is plotted, and missed with a remedy."""

import subprocess
import sys

import pytest

from attention_xp.masks import CausalMask
from attention_xp.viz import plot_mask


def test_nothing_is_imported_before_it_is_needed():
    program = """
import sys
import numpy
from attention_xp import viz
from attention_xp.masks import CausalMask
view = viz.head_view(numpy.eye(2), ["a", "b"])
view._repr_html_(), CausalMask()._repr_html_()
print({"matplotlib", "anywidget", "ipywidgets", "torch", "jax"} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "attention-xp\[viz\]"'):
        plot_mask(CausalMask(), 4, 4)
