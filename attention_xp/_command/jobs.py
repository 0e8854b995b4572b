"""What ``check`` computes: each kind of attention through the package, and by another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import attention_xp as ax
from attention_xp._command.calls import Call
from attention_xp._command.peers import FORMULA, additive, by_formula, peer
from attention_xp._command.places import Place, Side
from attention_xp._typing import Array, Namespace

__all__ = ["Contest", "contests"]

B, H, S, CONTEXT, D_MODEL = 2, 8, 256, 384, 512
D_HEAD = D_MODEL // H

FLASH = {
    "flash": Call.square(4, 1024, 64),
    "flash, long": Call.square(1, 4096, 64),
    "flash, windowed": Call.square(4, 2048, 64, is_causal=True, window=(128, 0)),
}
STEP = 16  # of the rows of long calls, every so many are compared


@dataclass(frozen=True)
class Contest:
    """One kind of attention at one place: by us, by another, and what it should be, for every so many rows."""

    job: str
    ours: Side
    other: str
    theirs: Side
    expected: tuple[Array, ...]
    step: int = 1

    def largest_error(self) -> float:
        """Return by how much ours is wrong at most; NaN stays NaN."""
        results = self.ours()
        to_host = self.ours.place.to_host
        pairs = zip(results if isinstance(results, tuple) else (results,), self.expected, strict=True)
        return float(np.max([np.max(np.abs(to_host(got)[..., :: self.step, :] - want)) for got, want in pairs]))


def contests(places: list[Place]) -> Iterator[tuple[Place, str, Callable[[], Contest]]]:
    """Yield each job at each place, and how to prepare it."""
    small = list(_small())
    for place in places:
        for job in small:
            yield place, job.name, lambda place=place, job=job: job.at(place)  # type: ignore[misc]
        for name, call in FLASH.items():
            yield place, name, lambda place=place, name=name, call=call: _flash(place, name, call)  # type: ignore[misc]


def _flash(place: Place, name: str, call: Call) -> Contest:
    arrays = call.arrays(place)
    query, key, value = (place.to_host(x).astype(np.float64) for x in arrays)
    mask = None if call.mask is None else additive(call)[::STEP]
    expected = by_formula(np, query[..., ::STEP, :], key, value, mask)[0]
    return Contest(name, call.ours(place, arrays), *peer(place, call, arrays), (expected,), STEP)


@dataclass(frozen=True)
class _Job:
    """A small call with weights: its inputs in float64, the call, and the same by hand."""

    name: str
    inputs: tuple[Any, ...]
    ours: Callable[..., Any]
    usual: Callable[..., Any]

    def at(self, place: Place) -> Contest:
        arrays = [place.array(a) for a in self.inputs]
        ours, usual = (
            place.side(lambda *a, attend=attend: attend(place.xp, *a), *arrays) for attend in (self.ours, self.usual)
        )
        return Contest(self.name, ours, FORMULA, usual, self.usual(np, *self.inputs))


def _small() -> Iterator[_Job]:
    draw = np.random.default_rng(0).standard_normal
    heads = tuple(draw((B, H, S, D_HEAD)) for _ in range(3))
    sequence, context = draw((B, S, D_MODEL)), draw((B, CONTEXT, D_MODEL))
    projections = tuple(draw((D_MODEL, D_MODEL)) / D_MODEL**0.5 for _ in range(4))
    causal = ax.create_causal_mask(S, dtype="float64")
    lengths = np.linspace(S // 4, S, B, dtype=int)
    padding = ax.create_padding_mask((np.arange(S) < lengths[:, None]).astype(int), dtype="float64")

    yield _Job("dot product", heads, lambda xp, *a: ax.scaled_dot_product_attention(*a), by_formula)
    yield _Job(
        "multi-head",
        (sequence, *projections),
        lambda xp, x, *p: ax.multi_head_self_attention(x, H, D_MODEL, params=ax.MultiHeadParams(*p)),
        _multi_head,
    )
    yield _Job(
        "self",
        (sequence,),
        lambda xp, x: ax.self_attention(x, D_MODEL),
        lambda xp, x: by_formula(xp, x, x, x),
    )
    yield _Job(
        "cross",
        (sequence, context),
        lambda xp, x, c: ax.cross_attention(x, c, D_MODEL),
        lambda xp, x, c: by_formula(xp, x, c, c),
    )
    yield _Job(
        "causal",
        (*heads, causal),
        lambda xp, q, k, v, mask: ax.scaled_dot_product_attention(q, k, v, is_causal=True),
        by_formula,
    )
    yield _Job("padded", (*heads, padding), lambda xp, *a: ax.scaled_dot_product_attention(*a), by_formula)


def _multi_head(xp: Namespace, x: Array, *projections: Array) -> tuple[Array, Array]:
    w_q, w_k, w_v, w_o = projections
    heads = (
        xp.permute_dims(xp.reshape(xp.matmul(x, w), (B, S, H, D_HEAD)), (0, 2, 1, 3))  # (B, H, S, dh)
        for w in (w_q, w_k, w_v)
    )
    output, weights = by_formula(xp, *heads)
    joined = xp.reshape(xp.permute_dims(output, (0, 2, 1, 3)), (B, S, D_MODEL))
    return xp.matmul(joined, w_o), weights
