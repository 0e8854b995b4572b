"""Rules that differ in a name, a type or anything else are never taken for each other, neither compared nor in attention."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
import pytest

from attention_xp import flash_attention, scaled_dot_product_attention
from attention_xp._scores.identity import identity
from attention_xp.biases import Bias
from attention_xp.masks import CausalMask, Mask, WindowMask
from tests._assertions import assert_close
from tests._backends import to_numpy
from tests._inputs import inputs
from tests.reference import attention


class Holder(Mask):
    """A rule that holds what it is given, by name."""

    def __init__(self, **given):
        vars(self).update(given)


class Pair(NamedTuple):
    """A tuple with names."""

    a: object
    b: object


@dataclasses.dataclass(frozen=True)
class Setting:
    """What takes 1 for True by its own equality."""

    n: object


def double(x):
    """A function that makes others."""
    return functools.partial(lambda y: (x, y), x)


ALIKE = [0, False, 0.0, -0.0, 0j, np.int64(0), np.float64(0.0), "0", b"0", None, math.nan]


@pytest.mark.parametrize("wrap", [
    lambda x: x, lambda x: (x,), lambda x: ((x, 1),), lambda x: [x], lambda x: {"a": x}, lambda x: frozenset([x]),
    lambda x: Pair(x, 1), Setting, lambda x: Holder(a=x),
], ids=["bare", "tuple", "nested", "list", "dict", "frozenset", "named tuple", "dataclass", "rule"])  # fmt: skip
def test_what_python_takes_for_one(wrap):
    rules = [Holder(n=wrap(x)) for x in ALIKE]
    assert [[a == b for b in rules] for a in rules] == np.eye(len(rules), dtype=bool).tolist()
    assert len(set(rules)) == len(rules)


@pytest.mark.parametrize(("one", "other"), [
    (Holder(below=3), Holder(above=3)),
    (Holder(a=1, b=2), Holder(a=2, b=1)),
    (Holder(a=(1, 2)), Holder(a=[1, 2])),
    (Holder(a=Pair(1, 2)), Holder(a=(1, 2))),
    (Holder(a={"x": 1}), Holder(a={"y": 1})),
    (Holder(a=double(1)), Holder(a=double(1))),
    (Holder(a=lambda: 1), Holder(a=lambda: 1)),
    (Holder(a=np.zeros(2)), Holder(a=np.zeros(2))),
    (Holder(a=1), type("Holder", (Holder,), {})(a=1)),
], ids=["names", "swapped", "list", "named tuple", "keys", "partials", "functions", "arrays", "classes"])  # fmt: skip
def test_rules_that_differ(one, other):
    assert one != other
    assert len({one, other}) == 2


def test_rules_that_do_not_differ():
    array, function = np.zeros(2), double(1)
    for given in (
        1,
        True,
        -0.0,
        math.nan,
        (1, [2.0]),
        {"a": {1, 2}},
        Pair(1, 2),
        Setting(1),
        array,
        function,
        CausalMask(),
    ):
        assert Holder(a=given) == Holder(a=given)
        assert hash(Holder(a=given)) == hash(Holder(a=given))
    one, other = Holder(), Holder()
    one.a, one.b, other.b, other.a = 1, 2, 2, 1
    assert one == other
    assert Holder(a=math.nan) == Holder(a=float("nan"))
    assert Holder(a=Setting([1])) == Holder(a=Setting([1]))


def test_a_rule_may_hold_itself_in_its_class():
    class Single(Mask):
        kinds: list = []  # noqa: RUF012  # as users write it

    Single.only = Single()
    Single.kinds.append(Single.only)
    assert hash(Single()) == hash(Single())


class Slotted(Mask):
    """A rule whose number is in a slot."""

    __slots__ = ("reach_back",)
    relative = shift_invariant = True

    def __init__(self, reach_back):
        self.reach_back = reach_back

    def allowed(self, region):
        return region.q_idx - region.kv_idx <= self.reach_back


class Heir(Slotted):
    """The same with another slot, a private one, and a dictionary."""

    __slots__ = ("__more",)

    def __init__(self, reach_back, more):
        super().__init__(reach_back)
        self.__more = more

    def allowed(self, region):
        return region.q_idx - region.kv_idx <= self.reach_back + self.__more


class Half(Mask):
    """One of two bounds."""

    relative = shift_invariant = True

    def __init__(self, **bound):
        vars(self).update(bound)

    def allowed(self, region):
        distance = region.q_idx - region.kv_idx
        return distance < self.below if hasattr(self, "below") else distance > self.above


class ByType(Mask):
    """A rule that looks at the type of its number."""

    relative = shift_invariant = True

    def __init__(self, n):
        self.n = n

    def allowed(self, region):
        return region.q_idx >= region.kv_idx if self.n is True else region.q_idx <= region.kv_idx


class ByClass(Mask):
    """A rule whose number is in its class."""

    relative = shift_invariant = True
    width = [1]  # noqa: RUF012  # as users write it

    def allowed(self, region):
        return abs(region.q_idx - region.kv_idx) <= self.width[0]


def of_width(width):
    """The rule after its class was changed."""
    ByClass.width = width
    return ByClass()


@dataclasses.dataclass
class Equal(Mask):
    """A rule that is equal to others of its name and says nothing of its hash."""

    n: int = dataclasses.field(compare=False)
    relative = shift_invariant = True

    def allowed(self, region):
        return region.q_idx - region.kv_idx <= self.n


@dataclasses.dataclass(frozen=True)
class Frozen(Mask):
    """A rule whose hash is made of its arrays, which have none."""

    table: np.ndarray
    relative = shift_invariant = True

    def allowed(self, region):
        return region.q_idx - region.kv_idx <= region.own(self.table)


class Obstinate(ByType):
    """A rule that takes all of its class for one."""

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return 0


PAIRS = {
    "names": lambda: (Half(below=3), Half(above=3)),
    "types": lambda: (ByType(n=True), ByType(1)),
    "their own equality": lambda: (Obstinate(n=True), Obstinate(1)),
    "slots": lambda: (Slotted(2), Slotted(9)),
    "inherited slots": lambda: (Heir(2, 1), Heir(2, 9)),
    "dataclasses": lambda: (Equal(2), Equal(9)),
    "frozen dataclasses": lambda: (Frozen(np.asarray([2], np.int32)), Frozen(np.asarray([9], np.int32))),
    "joined": lambda: (CausalMask() | Half(below=3), CausalMask() | Half(above=3)),
    "negated": lambda: (~Equal(2), ~Equal(9)),
}


@pytest.mark.backends("numpy", "torch")  # these keep plans and patches
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("S", [40, 700])
def test_nothing_that_is_kept_serves_another_rule(library, make, pair, S):
    query, key, value = inputs((1, 2, S, 4))
    for mask in pair():
        output = flash_attention(make(query), make(key), make(value), mask, impl="tiled")
        assert_close(output, attention(query, key, value, mask.to_array(S, S)).output, library)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("mask", [Equal(2), Frozen(np.asarray(2, np.int32))], ids=repr)
def test_dataclasses_are_rules(library, make, mask, impl):
    query, key, value = inputs((1, 2, 6, 4))
    output = flash_attention(make(query), make(key), make(value), mask & CausalMask(), impl=impl)
    expected = attention(query, key, value, (mask & CausalMask()).to_array(6, 6)).output
    assert_close(output, expected, library)


class Bent(Bias):
    """A bias that looks at the type, the sign or the name of a number."""

    def __init__(self, **given):
        vars(self).update(given)

    def values(self, region):
        n = next(iter(vars(self).values()))
        is_reversed = n is True or math.copysign(1.0, n) < 0 or hasattr(self, "back")
        return region.floating(region.kv_idx - region.q_idx if is_reversed else region.q_idx - region.kv_idx)


@pytest.mark.parametrize(("one", "other"), [
    (Bent(n=True), Bent(n=1)), (Bent(n=0.0), Bent(n=-0.0)), (Bent(n=1), Bent(back=1)), (Bent(n=[1][0]), Bent(n=-1)),
], ids=["types", "zeros", "names", "values"])  # fmt: skip
def test_no_program_serves_another_bias(library, make, one, other):
    query, key, value = inputs((1, 2, 6, 4))
    for bias in (one, other):
        output, _ = scaled_dot_product_attention(make(query), make(key), make(value), bias=bias, impl="dense")
        assert_close(
            flash_attention(make(query), make(key), make(value), bias=bias, impl="tiled"), to_numpy(output), library
        )


@pytest.mark.backends("numpy")
def test_classes_that_were_changed():
    x = np.random.default_rng(0).standard_normal((40, 4))
    width = [3]
    for mask in (of_width([1]), of_width([9]), of_width(width)):
        assert_close_to_formula(x, mask)
    width[0] = 5
    assert_close_to_formula(x, ByClass())


def assert_close_to_formula(x, mask):
    output = flash_attention(x, x, x, mask, impl="tiled")
    np.testing.assert_allclose(output, attention(x, x, x, mask.to_array(40, 40)).output, atol=1e-12)


class Asked(str):
    """A text that counts how often its hash is asked for."""

    __slots__ = ()
    count = 0

    def __hash__(self):
        Asked.count += 1
        return super().__hash__()


def test_joined_rules_are_asked_once_each():
    masks = [Holder(name=Asked("x")) for _ in range(20)]
    mask = functools.reduce(lambda a, b: a | b, masks)
    Asked.count = 0
    hash(mask)
    assert 20 <= Asked.count <= 40


def test_the_rules_of_the_library_are_values():
    assert identity(WindowMask(1, 2)) == identity(WindowMask(np.int64(1), 2))
    assert identity(WindowMask(1, 2)) != identity(WindowMask(2, 1))
