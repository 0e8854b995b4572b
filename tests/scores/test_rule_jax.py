"""Rules as pytrees: JAX sees their arrays, and takes the rest for a part of the program."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from attention_xp import attention_vjp, flash_attention
from attention_xp.biases import AlibiBias, Bias
from attention_xp.masks import CausalMask, LengthMask, SegmentMask, WindowMask
from tests._backends import to_numpy
from tests._inputs import inputs
from tests.scores.test_rule import ListBias, rules


@pytest.mark.backends("jax")
def test_arrays_are_leaves(make):
    for name, count in (("segments", 1), ("lengths", 1), ("a user's", 1)):
        mask = rules(make)[name]
        leaves, structure = jax.tree.flatten(mask)
        assert len(leaves) == count
        same = jax.tree.unflatten(structure, leaves)
        np.testing.assert_array_equal(to_numpy(same.to_array(6, 6)), to_numpy(mask.to_array(6, 6)))
        assert structure == jax.tree.structure(same)
    assert jax.tree.leaves(CausalMask() & WindowMask(3, 1)) == []
    assert len(jax.tree.leaves((AlibiBias(make(np.ones(2))), ListBias([make(np.ones(())), 1])))) == 2


@pytest.mark.backends("jax")
def test_a_new_mask_of_the_same_kind_is_not_compiled_anew(make):
    traced = []

    @jax.jit
    def attend(x, mask):
        traced.append(mask)
        return flash_attention(x, x, x, mask, impl="tiled")

    x = make(inputs((1, 2, 6, 4))[0])
    for ids in ([0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]):
        mask = SegmentMask(make(np.asarray(ids), "int32")) & CausalMask()
        assert_rows(attend(x, mask), flash_attention(x, x, x, mask, impl="dense"))
    assert len(traced) == 1
    attend(x, SegmentMask(make(np.asarray(ids), "int32")) & WindowMask(1, 0))
    assert len(traced) == 2


@pytest.mark.backends("jax")
def test_they_are_mapped_and_differentiated(make):
    x = make(inputs((2, 6, 4))[0])
    lengths = make(np.asarray([2, 5]), "int32")
    output = jax.vmap(lambda x, mask: flash_attention(x, x, x, mask, impl="dense"))(x, LengthMask(lengths))
    assert_rows(output, flash_attention(x, x, x, key_lengths=lengths, impl="dense"))
    slope = jax.grad(lambda bias: flash_attention(x, x, x, bias=bias, impl="dense").sum())(AlibiBias(make(np.ones(1))))
    assert isinstance(slope, AlibiBias)
    assert slope.slopes.shape == (1,)


def assert_rows(actual, expected):
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=2e-5, atol=1e-5)


ORDERS = {
    "masks first": "import attention_xp.masks; from attention_xp.masks import *; mask = CausalMask()\n{own}\nimport jax",
    "jax first": "import jax; from attention_xp.masks import *; mask = CausalMask()\n{own}",
    "sought first": "import importlib.util; from attention_xp.masks import *; mask = CausalMask()\n{own}\n"
    "assert importlib.util.find_spec('jax') is not None\nimport jax",
}
OWN = """
class Own(Mask):
    def __init__(self, array):
        self.array = array
"""
ASSERTIONS = """
import sys, numpy as np
leaves = jax.tree.leaves((mask, Own(np.ones(2)) | mask, SegmentMask(np.zeros(3, int))))
assert len(leaves) == 2, leaves
assert all(type(leaf) is np.ndarray for leaf in leaves)
class Later(Mask):
    pass
assert jax.tree.leaves(Later()) == []
assert not any("attention_xp" in getattr(finder, "__module__", "") for finder in sys.meta_path)
"""


@pytest.mark.backends("jax")
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_it_does_not_matter_what_is_imported_first(library, order):
    program = order.format(own=OWN) + ASSERTIONS
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


class Closing(Bias):
    """A bias with an array of its own that looks at another one beside it."""

    def __init__(self, own, other):
        self.own = own
        self._other = lambda: other

    def values(self, region):
        distance = region.floating(region.q_idx - region.kv_idx)
        return distance * region.own(self.own) + distance**2 * self._other()

    def vjp(self, region, grad_scores):
        return ((grad_scores * region.floating(region.q_idx - region.kv_idx)).sum(),)


@pytest.mark.backends("jax")
@pytest.mark.parametrize(
    "outer", [jax.grad, lambda f, **options: jax.jit(jax.grad(f, **options))], ids=["eager", "jit"]
)
def test_a_bias_may_close_over_a_traced_array(make, outer):
    x, upstream = (make(a) for a in inputs((1, 2, 6, 4))[:2])

    def total(own, other, impl):
        return (flash_attention(x, x, x, bias=Closing(own, other), impl=impl) * upstream).sum()

    slopes = [
        outer(lambda a, b, impl=impl: total(a, b, impl), argnums=(0, 1))(0.3, -0.2) for impl in ("dense", "tiled")
    ]
    assert all(abs(slope) > 1e-3 for slope in slopes[0])
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-4)


@pytest.mark.backends("jax")
def test_the_gradients_of_such_a_bias_are_those_of_its_arrays(make):
    x, upstream = (make(a) for a in inputs((1, 2, 6, 4))[:2])

    @jax.jit
    def slopes(own, other):
        found = [
            attention_vjp(x, x, x, bias=Closing(own, other), impl=impl)[1](upstream).bias for impl in ("dense", "tiled")
        ]
        assert [len(some) for some in found] == [1, 1]
        return found

    dense, tiled = slopes(make(np.asarray(0.3)), make(np.asarray(-0.2)))
    assert_rows(tiled[0], dense[0])


@pytest.mark.backends("jax")
def test_users_may_say_themselves_how_a_rule_is_split():
    @jax.tree_util.register_pytree_node_class
    class Before(CausalMask):
        def __init__(self, n):
            self.n = n

        def tree_flatten(self):
            return (self.n, "own"), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(leaves[0])

    assert jax.tree.leaves(Before(3)) == [3, "own"]
