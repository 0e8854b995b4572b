"""Which rules may depend on more than their attributes: functions and classes of the user."""

from attention_xp._scores.attributes import parts_of_kind
from attention_xp.biases._bias import Bias
from attention_xp.masks import FunctionMask, Mask
from attention_xp.masks._pairs import parts_of

__all__ = ["is_foreign", "is_foreign_bias"]


def is_foreign(rule: Mask, *, alone: bool = False) -> bool:
    """Whether a rule is a function, or of a class that is not ours; unless `alone`, also one of the rules it is made of."""
    if isinstance(rule, FunctionMask) or not rule._is_ours:
        return True
    return not alone and any(map(is_foreign, parts_of(rule)))


def is_foreign_bias(bias: Bias) -> bool:
    """Whether a bias is of a class that is not ours, or one of the biases it is made of."""
    return not bias._is_ours or any(map(is_foreign_bias, parts_of_kind(bias, Bias)))
