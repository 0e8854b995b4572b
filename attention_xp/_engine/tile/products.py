"""The two products of attention, with grouped-query heads folded, and without NaN from excluded keys and values.

Query head ``h`` uses key/value head ``h // G`` with ``G = H // Hkv``. The group is folded into the
rows, ``(..., Hkv, G * Sq, D)``, so keys and values are never repeated.
"""

from collections.abc import Callable
from math import inf, nan

from attention_xp._backend.libraries import array_namespace, device
from attention_xp._backend.values import by_value, flags_by_value
from attention_xp._engine.problem.problem import Problem
from attention_xp._typing import Array, Namespace

__all__ = [
    "Paged",
    "are_finite",
    "clean",
    "key_rows",
    "quarantined_key",
    "quarantined_outputs",
    "query_key",
    "query_rows",
    "silenced_rows",
    "value_rows",
    "weights_value",
]


class Paged:
    """Keys or values (B, Hkv, n, W) that lie in pages, and have products of their own.

    No abstract class: whether an array is one is asked several times in every call, which would take longer than the rest.
    """

    def scores(self, rows: Array) -> Array:
        """(B, Hkv, m, W) -> (B, Hkv, m, n): the products of rows and keys."""
        raise NotImplementedError

    def outputs(self, weights: Array) -> Array:
        """(B, Hkv, m, n) -> (B, Hkv, m, W): the sums of weighted values."""
        raise NotImplementedError

    def gathered(self) -> Array:
        """Return them as an array, copied."""
        raise NotImplementedError


Product = Callable[[Array, Array, Namespace], Array]


def query_key(
    problem: Problem,
    query: Array,
    key: Array,
    *,
    exclusive: bool,
    product: Callable[[Array, Array], Array] | None = None,
    is_followed: bool = False,
) -> Array:
    """Return ``query @ key^T``: (..., H, Sq, D) @ (..., Hkv, D, Sk) -> (..., H, Sq, Sk).

    With `exclusive`, some pairs will be excluded. A key that is not finite is then taken out of the product, and its scores
    are NaN, so that neither its values nor its gradients reach other pairs. The same is done with a query where the
    library differentiates the product by itself. A walker may bring a faster `product` of (..., m, D) and (..., n, D).
    """
    folded = _fold(problem, query)
    if isinstance(key, Paged):  # a score is made of one key alone
        return _unfold(problem, key.scores(folded))
    if not exclusive:
        return _unfold(problem, _scores(folded, key, problem.xp) if product is None else product(folded, key))
    xp = problem.xp
    if not is_followed:
        scores = by_value(xp, lambda: xp.all(xp.isfinite(key)), _scores, _quarantined_scores, folded, key, xp)
    else:
        scores = by_value(xp, lambda: are_finite(folded, key), _scores, _quarantined_both, folded, key, xp)
    return _unfold(problem, scores)


def are_finite(query: Array, key: Array) -> Array:
    """Return whether all numbers of both arrays are finite."""
    xp = array_namespace(query, key)
    return xp.all(xp.isfinite(query)) & xp.all(xp.isfinite(key))


def weights_value(
    problem: Problem, weights: Array, value: Array, *, exclusive: bool, product: Product | None = None
) -> Array:
    """Return ``weights @ value``: (..., H, Sq, Sk) @ (..., Hkv, Sk, Dv) -> (..., H, Sq, Dv).

    With `exclusive`, some weights are exactly 0 by exclusion: a value that is not finite then reaches
    those rows alone whose weight for it is positive. A walker may bring a faster `product` for all other values.
    """
    folded, xp = _fold(problem, weights), problem.xp
    if isinstance(value, Paged):
        found = value.outputs(folded)
        outputs = by_value(
            xp,
            lambda: xp.all(xp.isfinite(found)),
            lambda found: found,
            lambda _: quarantined_outputs(folded, value.gathered(), xp),
            found,
        )
        return _unfold(problem, outputs)
    if not exclusive:
        return _unfold(problem, (_outputs if product is None else product)(folded, value, xp))
    return _unfold(
        problem, by_value(xp, lambda: xp.all(xp.isfinite(value)), _outputs, quarantined_outputs, folded, value, xp)
    )


def query_rows(problem: Problem, grad_scores: Array, key: Array, *, exclusive: bool) -> Array:
    """Return ``grad_scores @ key``: (..., H, Sq, Sk) @ (..., Hkv, Sk, D) -> (..., H, Sq, D).

    With `exclusive`, some gradients of scores are exactly 0 by exclusion, and must not become NaN in the product with a
    key that is not finite. Rows that may attend such a key have gradients that are NaN already.
    """
    folded = _fold(problem, grad_scores)
    if not exclusive:
        return _unfold(problem, _outputs(folded, key, problem.xp))
    xp = problem.xp
    return _unfold(
        problem,
        by_value(
            xp, lambda: xp.all(xp.isfinite(key)), _outputs, lambda s, k, xp: _outputs(s, clean(k), xp), folded, key, xp
        ),
    )


def key_rows(problem: Problem, weights: Array, rows: Array) -> Array:
    """Return ``weights^T @ rows``: (..., H, Sq, Sk)^T @ (..., H, Sq, W) -> (..., Hkv, Sk, W)."""
    xp = problem.xp
    return _outputs(xp.matrix_transpose(_fold(problem, weights)), _fold(problem, rows), xp)


def value_rows(problem: Problem, weights: Array, rows: Array, *, exclusive: bool) -> Array:
    """Return ``weights^T @ rows``: (..., H, Sq, Sk)^T @ (..., H, Sq, Dv) -> (..., Hkv, Sk, Dv).

    With `exclusive`, some weights are exactly 0 by exclusion: a row that is not finite then reaches those keys
    alone whose weight in it is positive.
    """
    xp = problem.xp
    columns, folded = xp.matrix_transpose(_fold(problem, weights)), _fold(problem, rows)
    if not exclusive:
        return _outputs(columns, folded, xp)
    return by_value(xp, lambda: xp.all(xp.isfinite(folded)), _outputs, silenced_rows, columns, folded, xp)


def silenced_rows(columns: Array, rows: Array, xp: Namespace) -> Array:
    """Return ``columns @ rows``, where a row that is not finite counts as 0 under a weight of 0, and as NaN otherwise."""
    is_bad = xp.any(~xp.isfinite(rows), axis=-1, keepdims=True)
    products = _outputs(columns, xp.concat((clean(rows), xp.astype(is_bad, rows.dtype)), axis=-1), xp)
    return xp.where(products[..., -1:] > 0.0, nan, products[..., :-1])


def clean(key: Array) -> Array:
    """Return the keys with 0 for numbers that are not finite."""
    xp = array_namespace(key)
    return xp.where(xp.isfinite(key), key, 0.0)


def _fold(problem: Problem, rows: Array) -> Array:
    if problem.group == 1:
        return rows
    *lead, heads, Sq, width = rows.shape
    return problem.xp.reshape(rows, (*lead, heads // problem.group, problem.group * Sq, width))


def _unfold(problem: Problem, rows: Array) -> Array:
    if problem.group == 1:
        return rows
    *lead, kv_heads, folded, width = rows.shape
    return problem.xp.reshape(rows, (*lead, kv_heads * problem.group, folded // problem.group, width))


def _scores(query: Array, key: Array, xp: Namespace) -> Array:
    return xp.matmul(query, xp.matrix_transpose(key))


def _quarantined_scores(query: Array, key: Array, xp: Namespace) -> Array:
    key, poison = quarantined_key(key)
    return _scores(query, key, xp) + xp.expand_dims(poison, axis=-2)


def _quarantined_both(query: Array, key: Array, xp: Namespace) -> Array:
    # 0, or NaN for a row that is not finite, whose gradient is then NaN too. As a product, because XLA would compute a sum
    # once more for each score.
    poison = xp.matmul(0.0 * query, xp.ones((query.shape[-1], 1), dtype=query.dtype, device=device(query)))
    return _quarantined_scores(clean(query), key, xp) + poison


def quarantined_key(key: Array) -> tuple[Array, Array]:
    """Return the keys (..., n, D) with 0 for numbers that are not finite, and (..., n): NaN for keys with such, else 0."""
    xp = array_namespace(key)
    zero = xp.zeros((), dtype=key.dtype, device=device(key))
    return clean(key), xp.where(xp.all(xp.isfinite(key), axis=-1), zero, nan)


def _outputs(weights: Array, value: Array, xp: Namespace) -> Array:
    return xp.matmul(weights, value)


def _reached(weights: Array, value: Array) -> tuple[Array, Array]:
    """Return which outputs become infinity, and which become minus infinity, by a value with a positive weight."""
    xp = array_namespace(weights, value)
    undefined = xp.isnan(value)  # both infinities at once, as inf - inf
    sources = (undefined | (value == inf), undefined | (value == -inf))
    rises, falls = (_outputs(weights, xp.astype(source, value.dtype), xp) > 0.0 for source in sources)
    return rises, falls


def quarantined_outputs(weights: Array, value: Array, xp: Namespace) -> Array:
    """Return ``weights @ value``, where values that are not finite count as 0 under a weight of 0."""
    rises, falls = flags_by_value(xp, _has_finite_values, _reached, weights, value)
    return _with_infinities(_outputs(weights, clean(value), xp), rises, falls, xp)


def _has_finite_values(weights: Array, value: Array) -> Array:  # noqa: ARG001
    xp = array_namespace(value)
    return xp.all(xp.isfinite(value))


def _with_infinities(output: Array, rises: Array, falls: Array, xp: Namespace) -> Array:
    """Return outputs with the infinities that reach them; both of them make NaN."""
    output = xp.where(rises, inf, output)
    # One after the other: `jax_debug_nans` refuses an array of NaN, even if no entry of it is taken.
    output = xp.where(falls, -inf, output)
    return xp.where(rises & falls, nan, output)
