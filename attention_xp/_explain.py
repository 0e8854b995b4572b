"""Which kernel computes a call, and why not another."""

from collections.abc import Iterator, Mapping
from typing import Unpack

from attention_xp._checks.numbers import check_flag
from attention_xp._engine.kernels.choose import OWN, answers, choose
from attention_xp._engine.kernels.fused import array_of_rules
from attention_xp._engine.problem.options import AttentionOptions, check_options, with_options
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._public_types import Array, ArrayT
from attention_xp.masks import Mask

__all__ = ["Explanation", "explain"]


class Explanation(Mapping[str, str]):
    """What `explain` returns: for each kernel ``"chosen"``, ``"can"`` or why it cannot; prints itself, a line for each.

    Attributes
    ----------
    kernel : str
        The name of the kernel that computes the call.
    reasons : dict of str to (str or None)
        For each kernel, in the order in which they are asked, why it cannot compute the call; ``None`` where it can.
    loops : str or None
        Where NumPy computes tiles, of its arrays or of torch's on the CPU: ``"numba"``, or why NumPy's own operations pass over
        them. ``"numba"`` as well where programs of JAX hand tiles to these loops, and where loops read the keys of a few rows, of
        arrays of any library; ``None`` elsewhere.
    mask_array : tuple of int or None
        Where torch's kernel is chosen and gets all rules together as one boolean array, which is made for it: its shape.
    """

    def __init__(
        self,
        kernel: str,
        reasons: dict[str, str | None],
        loops: str | None = None,
        mask_array: tuple[int, ...] | None = None,
    ) -> None:
        self.kernel, self.reasons, self.loops, self.mask_array = kernel, reasons, loops, mask_array

    def __getitem__(self, kernel: str) -> str:
        return "chosen" if kernel == self.kernel else self.reasons[kernel] or "can"

    def __iter__(self) -> Iterator[str]:
        return iter(self.reasons)

    def __len__(self) -> int:
        return len(self.reasons)

    def __repr__(self) -> str:
        lines = [f"{kernel}: {verdict}" for kernel, verdict in self.items()]
        if self.mask_array is not None:
            lines.append(f"mask: made as one boolean array of {self.mask_array}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show a table in a notebook."""
        from html import escape  # noqa: PLC0415  # for notebooks alone

        rows = (f"<tr><th>{kernel}</th><td>{escape(verdict)}</td></tr>" for kernel, verdict in self.items())
        return f"<table>{''.join(rows)}</table>"


@with_options
def explain(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    return_weights: bool = False,
    return_lse: bool = False,
    **options: Unpack[AttentionOptions],
) -> Explanation:
    """Tell what each kernel says to a call, and which one computes it.

    Parameters
    ----------
    query, key, value, mask, dropout_rate
        As in `scaled_dot_product_attention`.
    return_weights, return_lse : bool, default: False
        What the call would be asked for beside the output.
    {options}

    Returns
    -------
    Explanation
        For each kernel ``"chosen"``, ``"can"`` or the reason why it cannot; it prints itself. Attributes: ``kernel``, the
        name of the chosen one, ``reasons``, ``loops``, whether numba compiled those of the tiles, and ``mask_array``, the
        shape of the array that is made of all rules for torch's kernel.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit, or `impl` cannot compute the call.

    Notes
    -----
    Nothing is computed. ``python -m attention_xp explain`` describes a call by numbers, and tells its tiles, and how many seconds and
    bytes it takes here, forward or with gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import explain
    >>> x = np.zeros((2, 8, 512, 64))
    >>> found = explain(x, x, x, is_causal=True)
    >>> print(found)
    fused: there is no fused kernel for numpy arrays
    tiled: chosen
    dense: can
    >>> found.kernel, found.reasons["dense"]
    ('tiled', None)
    """
    check_options(explain, options)
    problem = Problem.of(query, key, value, mask, dropout_rate, options)
    wanted = Wanted(check_flag("return_weights", return_weights), check_flag("return_lse", return_lse))
    kernel = choose(problem, wanted)
    loops = OWN[kernel].loops_of(problem, wanted) if kernel in OWN else None
    mask_array = array_of_rules(problem) if kernel == "fused" else None
    return Explanation(kernel, answers(problem, wanted), loops, mask_array)
