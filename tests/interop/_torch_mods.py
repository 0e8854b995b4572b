"""Functions as programs that use FlexAttention write them: of one score, or of one pair of query and key."""

import torch

__all__ = ["MASK_MODS", "SCORE_MODS", "B", "H", "S", "captured"]

B, H, S = 2, 4, 24


def captured():
    """Return what the functions look at besides their arguments, always the same numbers."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (0.5 * torch.randn(*shape, generator=draw)).requires_grad_()

    return {
        "slopes": normal(H),
        "table": normal(H, 2 * S),
        "temperature": normal(B, H),
        "whole": normal(B, H, S, S),
        "rows": normal(S, 5),
        "columns": normal(S, 5),
        "widths": normal(H),
        "sinks": normal(H),
        "documents": torch.arange(S) // 7,
        "lengths": torch.tensor([S, 15]),
        "sets": torch.rand(S, 4, generator=draw) < 0.4,
        "windows": torch.tensor([2, 4, 8, 16]),
    }


def _causal(c):
    return lambda score, b, h, q, k: torch.where(q >= k, score, -float("inf"))


def _relative(c):
    return lambda score, b, h, q, k: score + (q - k)


def _alibi(c):
    return lambda score, b, h, q, k: score - c["slopes"][h] * (q - k).abs()


def _soft_cap(c):
    return lambda score, b, h, q, k: 2.0 * torch.tanh(score / 2.0)


def _table(c):
    return lambda score, b, h, q, k: score + c["table"][h, q - k + S]


def _whole_bias(c):
    return lambda score, b, h, q, k: score + c["whole"][b, h, q, k]


def _temperature(c):
    return lambda score, b, h, q, k: score * c["temperature"][b, h].exp()


def _same_document(c):
    return lambda score, b, h, q, k: torch.where(c["documents"][q] == c["documents"][k], score, -float("inf"))


def _gaussian(c):
    return lambda score, b, h, q, k: score - ((q - k) * c["widths"][h]) ** 2


def _product_of_rows(c):
    return lambda score, b, h, q, k: score + (c["rows"][q] * c["columns"][k]).sum()


def _greatest_of_rows(c):
    return lambda score, b, h, q, k: score + torch.maximum(c["rows"][q], c["columns"][k]).max()


def _normalised_rows(c):
    return lambda score, b, h, q, k: score * torch.softmax(c["rows"][q], -1)[k % 5]


def _first_key(c):
    return lambda score, b, h, q, k: torch.where(k == 0, c["sinks"][h], score)


SCORE_MODS = {
    f.__name__.strip("_"): f
    for f in (
        _causal, _relative, _alibi, _soft_cap, _table, _whole_bias, _temperature, _same_document, _gaussian,
        _product_of_rows, _greatest_of_rows, _normalised_rows, _first_key,
    )
}  # fmt: skip


def _near(q, k):
    """Whether two places of a grid of 6 columns are neighbours."""
    return ((q // 6 - k // 6).abs() <= 1) & ((q % 6 - k % 6).abs() <= 1)


MASK_MODS = {
    "causal": lambda c: lambda b, h, q, k: q >= k,
    "window": lambda c: lambda b, h, q, k: (q >= k) & (q - k <= 5),
    "prefix": lambda c: lambda b, h, q, k: (q >= k) | (k < 6),
    "document": lambda c: lambda b, h, q, k: c["documents"][q] == c["documents"][k],
    "causal document": lambda c: lambda b, h, q, k: (c["documents"][q] == c["documents"][k]) & (q >= k),
    "dilated": lambda c: lambda b, h, q, k: ((q - k).abs() <= 8) & ((q - k) % 2 == 0),
    "neighbours": lambda c: lambda b, h, q, k: _near(q, k),
    "padding": lambda c: lambda b, h, q, k: k < c["lengths"][b],
    "chunks": lambda c: lambda b, h, q, k: (q // 8 == k // 8) & (q >= k),
    "global": lambda c: lambda b, h, q, k: (q < 2) | (k < 2) | ((q - k).abs() < 3),
    "head's window": lambda c: lambda b, h, q, k: (q >= k) & (q - k < c["windows"][h]),
    "common element": lambda c: lambda b, h, q, k: (c["sets"][q] & c["sets"][k]).any(),
    "most of a row": lambda c: lambda b, h, q, k: c["sets"][q].sum() >= c["sets"][k].sum(),
}
