"""Which kernel computes a call, and why not another."""

from typing import Unpack

from attention_xp._engine.choose import answers, choose
from attention_xp._engine.numbers import check_flag
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Wanted
from attention_xp._options import AttentionOptions, with_options
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["explain"]


@with_options
def explain(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool = False,
    return_lse: bool = False,
    **options: Unpack[AttentionOptions],
) -> dict[str, str]:
    """Print what each kernel says to a call, and which one computes it.

    Parameters
    ----------
    query, key, value, mask, dropout_rate
        As in `scaled_dot_product_attention`.
    return_weights, return_lse : bool, default: False
        What the call would be asked for beside the output.
    {options}

    Returns
    -------
    dict
        For each kernel ``"chosen"``, ``"can"`` or the reason why it cannot.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit, or `impl` cannot compute the call.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import explain
    >>> x = np.zeros((2, 8, 512, 64))
    >>> verdicts = explain(x, x, x, is_causal=True)
    fused: there is no fused kernel for numpy arrays
    tiled: chosen
    dense: can
    """
    problem = Problem.of(query, key, value, mask, dropout_rate, options)
    wanted = Wanted(check_flag("return_weights", return_weights), check_flag("return_lse", return_lse))
    chosen = choose(problem, wanted)
    verdicts = {
        name: "chosen" if name == chosen else reason or "can" for name, reason in answers(problem, wanted).items()
    }
    print("\n".join(f"{name}: {verdict}" for name, verdict in verdicts.items()))  # noqa: T201
    return verdicts
