"""The yardsticks: attention, and linear attention, in a few lines, as everyone writes them."""

import math
from typing import Any

__all__ = ["chunked_rule", "usual_attention"]


def usual_attention(np: Any, query: Any, key: Any, value: Any, *, is_causal: bool = False) -> tuple[Any, Any]:
    """Return output and weights of scaled dot-product attention."""
    scores = np.matmul(query, np.swapaxes(key, -2, -1)) / math.sqrt(query.shape[-1])
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    scores = scores - np.max(scores, axis=-1, keepdims=True)
    exponentials = np.exp(scores)
    weights = exponentials / np.sum(exponentials, axis=-1, keepdims=True)
    return np.matmul(weights, value), weights


def chunked_rule(
    torch: Any, query: Any, key: Any, value: Any, *, decay: Any = None, beta: Any = None, chunk_size: int = 64
) -> Any:
    """Return linear attention with a memory that fades or is corrected, in chunks: a loop over those, and one over rows.

    `decay` and `beta` are (..., S, 1), and S a multiple of `chunk_size`. What does not depend on the memory is computed
    for all chunks at once; the triangular system is solved row by row. Logs are summed from the start of a chunk and
    subtracted, which serves decays that are not strong.
    """
    C = chunk_size
    query = query / math.sqrt(query.shape[-1])
    query, key, value = (x.unflatten(-2, (-1, C)) for x in (query, key, value))
    sums = (torch.zeros_like(query[..., :1]) if decay is None else decay.unflatten(-2, (-1, C))).cumsum(-2)
    fading = (sums - sums.mT).tril().exp().tril()
    from_start, to_end = sums.exp(), (sums[..., -1:, :] - sums).exp()
    written, recalled = value, torch.zeros_like(key)
    if beta is not None:
        beta = beta.unflatten(-2, (-1, C))
        system = -(beta * (key @ key.mT) * fading).tril(-1)
        for i in range(1, C):
            system[..., i, :i] += (system[..., i, None, :i] @ system[..., :i, :i])[..., 0, :]
        inverse = system + torch.eye(C)
        written, recalled = inverse @ (beta * value), inverse @ (beta * key * from_start)
    memory = torch.zeros(*query.shape[:-3], query.shape[-1], value.shape[-1])
    outputs = []
    for i in range(query.shape[-3]):
        q, k = query[..., i, :, :], key[..., i, :, :]
        news = written[..., i, :, :] - recalled[..., i, :, :] @ memory
        outputs.append((q * from_start[..., i, :, :]) @ memory + (q @ k.mT * fading[..., i, :, :]) @ news)
        memory = memory * from_start[..., i, -1:, :] + (k * to_end[..., i, :, :]).mT @ news
    return torch.cat(outputs, dim=-2)
