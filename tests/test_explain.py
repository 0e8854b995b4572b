"""What each kernel answers to a call."""

import numpy as np
import pytest

from attention_xp import explain, flash_attention
from attention_xp._engine.kernels.choose import KERNELS
from attention_xp._engine.plan import borders
from attention_xp._engine.walkers.numpy import at_once
from attention_xp._engine.walkers.numpy.compiled import found
from attention_xp.masks import PrefixMask
from tests._inputs import inputs

FEW, MANY = inputs((2, 4, 5, 8)), inputs((2, 4, 600, 8))

# Why a kernel that a library brings cannot compute the plain call on a CPU.
REASONS = {
    "numpy": "there is no fused kernel for numpy arrays",
    "strict": "there is no fused kernel for strict arrays",
    "jax": "cuDNN, JAX's fused kernel, needs a CUDA device",
}


def test_every_kernel_answers_and_one_is_chosen(library):
    for arrays in (FEW, MANY):
        verdicts = explain(*map(library.array, arrays), is_causal=True)
        assert list(verdicts) == list(KERNELS) == list(verdicts.reasons)
        assert [name for name, verdict in verdicts.items() if verdict == "chosen"] == [verdicts.kernel]
        if library.value in REASONS:
            assert verdicts["fused"] == REASONS[library.value]


@pytest.mark.backends("torch")
def test_torch_is_chosen_and_says_what_it_lacks(library):
    arrays = [*map(library.array, MANY)]
    assert explain(*arrays) == {"fused": "chosen", "tiled": "can", "dense": "can"}
    verdicts = explain(*arrays, PrefixMask(3))
    assert verdicts == {"fused": "can", "tiled": "chosen", "dense": "can"}
    assert verdicts.mask_array is None
    found = explain(*(a[..., :300, :] for a in arrays), PrefixMask(3))
    assert (found.kernel, found.mask_array) == ("fused", (300, 300))
    assert str(found).splitlines()[-1] == "mask: made as one boolean array of (300, 300)"
    long = arrays[0][..., :1, :].expand(2, 4, 3000, 8)
    assert "would need this mask as an array of (3000, 3000)" in explain(long, long, long, PrefixMask(3))["fused"]
    assert "softcap" in explain(*arrays, softcap=2.0)["fused"]
    assert "log-sum-exp" in explain(*arrays, return_lse=True)["fused"]
    assert explain(*arrays, return_weights=True)["fused"] == "a fused kernel does not give the weights"


def test_few_scores_and_wanted_weights_are_dense_and_many_scores_tiled(library):
    few, many = ([*map(library.array, arrays)] for arrays in (FEW, MANY))
    softcap = {"softcap": 2.0}  # no guest has it
    assert explain(*few, **softcap)["dense"] == "chosen"
    assert explain(*many, **softcap)["tiled"] == "chosen"
    assert explain(*many, **softcap, return_weights=True)["dense"] == "chosen"


def test_what_was_asked_for_is_chosen_or_refused(library, impl):
    arrays = [*map(library.array, FEW)]
    assert explain(*arrays, impl=impl)[impl] == "chosen"
    with pytest.raises(ValueError, match="impl='fused' cannot compute this call: "):
        explain(*arrays, impl="fused", return_weights=True)
    with pytest.raises(ValueError, match="query_offset is required"):
        explain(*arrays[:1], *(library.array(x) for x in inputs((2, 4, 7, 8))[1:]), is_causal=True)


def test_the_kernel_that_is_named_computes(library, monkeypatch):
    arrays = [*map(library.array, MANY)]
    chosen = explain(*arrays).kernel
    called = []
    attend = KERNELS[chosen].attend
    monkeypatch.setattr(KERNELS[chosen], "attend", lambda *x: called.append(chosen) or attend(*x))
    assert np.shape(flash_attention(*arrays)) == MANY.query.shape
    assert called == [chosen]


def test_an_explanation_prints_itself_and_nothing_else_does(capsys):
    explanation = explain(*MANY, is_causal=True)
    assert capsys.readouterr().out == ""
    text = "fused: there is no fused kernel for numpy arrays\ntiled: chosen\ndense: can"
    assert str(explanation) == repr(explanation) == text
    assert explanation.kernel == "tiled"
    assert explanation.reasons == {"fused": "there is no fused kernel for numpy arrays", "tiled": None, "dense": None}
    assert "<tr><th>dense</th><td>can</td></tr>" in explanation._repr_html_()
    with pytest.raises(KeyError, match="quick"):
        explanation["quick"]


@pytest.mark.backends("numpy", "torch", "jax")
def test_loops_over_few_rows(library, monkeypatch):
    monkeypatch.setattr(at_once, "are_compiled", lambda problem: problem.group > 1)
    monkeypatch.setattr(borders, "_LARGE_HEAD", 0)
    key = library.array(np.zeros((1, 2, 30, 8)))
    for heads, loops in ((4, "numba"), (2, None)):
        query = library.array(np.zeros((1, heads, 1, 8)))
        assert explain(query, key, key).loops == loops
        assert explain(query, key, key, return_weights=True).loops is None


@pytest.mark.backends("numpy", "torch")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loops_over_tiles_are_those_of_numpys_walker(library, xp, dtype):
    if not hasattr(xp, dtype):
        pytest.skip("NumPy has no bfloat16")
    x = library.array(np.zeros((1, 2, 1024, 16)), dtype=dtype)
    if library.like("torch"):
        x.requires_grad_()
    loops = explain(x, x, x, is_causal=True, softcap=5.0, impl="tiled").loops
    assert loops == ("numba" if found.loops() else "numba is not installed")
    assert explain(x, x, x, impl="dense").loops is None
