"""Few rows that other libraries hand to NumPy's loops, with the formula in their place: numba need not be installed."""

from attention_xp._engine.tile.formula import attend_region
from attention_xp._engine.walkers.numpy import at_once
from attention_xp._engine.walkers.numpy.few_rows import FewRows


def counted(monkeypatch):
    """Let every call of few rows be one for compiled loops, and return a list that grows with each that comes to them."""
    calls = []

    def by_formula(_, region, query, key, value, wanted):
        calls.append(region)
        return attend_region(FewRows(region.frame), region, query, key, value, wanted)

    monkeypatch.setattr(at_once, "are_compiled", lambda problem: len(problem.rules) == 0)
    monkeypatch.setattr(at_once, "pay_for_loops", lambda keys: True)
    monkeypatch.setattr(at_once, "Steps", lambda problem: None)
    monkeypatch.setattr(at_once, "attend_in_place", by_formula)
    return calls
