"""Compiled functions that are kept on the disk."""

import numba

from attention_xp._engine.walkers.numpy.compiled import compiling


def _twice(x):
    return 2.0 * x


def test_a_change_of_another_module_compiles_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    found = []
    for state in (1, 1, 2):
        monkeypatch.setattr(compiling, "_sources", lambda state=state: (state,))
        function = compiling.compiled()(_twice)
        assert function(1.5) == 3.0
        found.append(sum(function.stats.cache_hits.values()))
    assert found == [0, 1, 0]


def test_the_state_is_that_of_all_modules():
    names = {name for name, *_ in compiling._sources()}
    assert {"attended.py", "bands.py", "registers.py", "powers.py"} <= names
