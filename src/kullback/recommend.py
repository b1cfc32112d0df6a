"""Calibrated recommendation: a list that shows a user's tastes in their proportions.

Someone who watched 70 % romance and 30 % action should be shown about that, and not romance alone. Steck (2018)
measures the distance of a list from the history by a KL divergence over genres and re-ranks greedily for a mixture of
score and calibration.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._errors import FormError
from .forms.finite import Probs
from .verbs import skew

_BLOCK_CELLS = 1 << 20  # (users, candidates, genres of an item) alive at once


def genre_distribution(genres: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
    """p(g) = Σ_i w_i p(g|i) / Σ_i w_i: the genres of a history, or of a list.

    Args:
        genres: (..., N, G), p(g|i) of every item, rows that sum to 1. Pad to a common N.
        weights: (..., N) >= 0: how recently or how often an item was played, or the weight of its rank; None for ones.
        mask: (..., N) bool, True keeps the item; padding may hold anything.

    Returns: Tensor (..., G), a distribution over genres; NaN for a user without any item.
    Raises: FormError: shapes that do not fit.
    Source: Steck 2018, equations 2-3.

    >>> genre_distribution(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.7500, 0.2500])
    """
    w = torch.ones(genres.shape[:-1], dtype=genres.dtype, device=genres.device) if weights is None else weights
    if w.shape != genres.shape[:-1]:
        raise FormError(
            f"genre_distribution: genres hold {tuple(genres.shape[:-1])} items but weights {tuple(w.shape)}. Write one "
            "weight for every item."
        )
    if mask is not None:
        w, genres = torch.where(mask, w, 0.0), torch.where(mask.unsqueeze(-1), genres, 0.0)
    return (w.unsqueeze(-1) * genres).sum(-2) / w.sum(-1, keepdim=True)


def calibration(taste: Tensor, shown: Tensor, *, smoothing: float = 0.01) -> Tensor:
    """Steck's calibration C_KL = KL(p ‖ (1-α) q + α p): 0 for a list in the user's proportions.

    Args:
        taste: (..., G), p: the user's distribution over genres (see `genre_distribution`).
        shown: (..., G), q: the list's.
        smoothing: α in (0, 1], which keeps a genre that the list lacks from being infinitely bad. 0.01 in the source.

    Returns: Tensor (...), in nats, from 0 to log(1/α).
    Raises: FormError: rows that are no distributions, a smoothing out of range.
    Source: Steck 2018, "Calibrated recommendations", RecSys, equations 4-5.

    >>> calibration(torch.tensor([0.7, 0.3]), torch.tensor([1.0, 0.0]))
    tensor(1.1340)
    """
    _check_smoothing(smoothing)
    return skew(Probs(taste), Probs(shown), smoothing)


class Recommendation(NamedTuple):
    """items: (U, K) item ids in the order of showing. calibration: (U,) of each list. score: (U,) Σ of its scores."""

    items: Tensor
    calibration: Tensor
    score: Tensor


@torch.no_grad()
def rerank(
    scores: Tensor,
    genres: Tensor,
    taste: Tensor,
    *,
    length: int,
    tradeoff: float = 0.5,
    smoothing: float = 0.01,
    candidates: Tensor | None = None,
    rank_weights: Tensor | None = None,
) -> Recommendation:
    """Choose, user by user, a list that is relevant and calibrated:

        max over lists of length K:  (1-λ) Σ_i s_i - λ C_KL(p, q(list))

    greedily: at every position the item that makes the list so far best.

    Args:
        scores: (U, C), relevance of every candidate; -inf excludes one.
        genres: (I, G), p(g|i) of every item of the catalogue, rows that sum to 1.
        taste: (U, G), p of every user.
        length: K, at most C.
        tradeoff: λ in [0, 1]; 0 ranks by score alone, 1 by calibration alone.
        smoothing: α in (0, 1].
        candidates: (U, C) item ids of the columns of scores; None means that column c is item c.
        rank_weights: (K,) > 0, the weight of every position in q(list), for example 1/log2(rank + 1); None for ones.

    Returns: a `Recommendation`. Ties go to the earlier column.
    Raises: FormError: shapes that do not fit, numbers out of range, a user with fewer than K candidates.

    Cost: O(U·C·K·m) for items with at most m genres each; 10,000 users × 1,000 candidates with K = 10 and m = 3
    take seconds on one core. Arithmetic in float32, memory a block of users at a time.

    Source: Steck 2018, section 3.

    >>> genres = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> rerank(torch.tensor([[0.9, 0.8, 0.1]]), genres, torch.tensor([[0.5, 0.5]]), length=2).items
    tensor([[0, 2]])
    """
    _check_smoothing(smoothing)
    users, columns = scores.shape
    _check_shapes(scores, genres, taste, length, tradeoff, candidates, rank_weights)
    weights = torch.ones(length) if rank_weights is None else rank_weights
    ids = torch.arange(columns, device=scores.device).expand(users, columns) if candidates is None else candidates
    slots = max(int((genres > 0).sum(-1).max()) if genres.numel() else 0, 1)
    share, genre = genres.float().topk(slots, -1)  # the genres that an item has; the others cost nothing
    chosen = torch.empty(users, length, dtype=torch.long, device=scores.device)
    step = max(1, _BLOCK_CELLS // (columns * slots))
    for start in range(0, users, step):
        block = slice(start, start + step)
        chosen[block] = _greedy(
            scores[block].float(),
            genre[ids[block]],
            share[ids[block]],
            taste[block].float(),
            weights,
            tradeoff,
            smoothing,
        )
    items = ids.gather(1, chosen)
    per_rank = weights.to(genres).expand(users, length)
    shown = genre_distribution(genres[items], per_rank)
    return Recommendation(items, calibration(taste, shown, smoothing=smoothing), scores.gather(1, chosen).sum(1))


def _greedy(
    scores: Tensor, genre: Tensor, share: Tensor, taste: Tensor, weights: Tensor, tradeoff: float, smoothing: float
) -> Tensor:
    """Columns chosen by every user (U, K). genre, share: (U, C, m), the genres of the candidates and p(g|i)."""
    users, columns, slots = genre.shape
    cells = genre.reshape(users, columns * slots)
    liked = taste.gather(1, cells).reshape(genre.shape)  # p(g) at every cell; a genre with p = 0 costs nothing
    left = torch.where(scores == -torch.inf, scores, (1.0 - tradeoff) * scores)
    total = torch.zeros_like(taste)  # Σ of w p(g|i) over the list so far
    weight_so_far = 0.0
    chosen = []
    for weight in weights.tolist():
        weight_so_far += weight
        if smoothing < 1.0:
            # (1-α) q + α p = (1-α)/W · (total + w p(g|i) + W α/(1-α) p), where only p(g|i) depends on the candidate
            base = total + (weight_so_far * smoothing / (1.0 - smoothing)) * taste
            inverse = torch.where(taste > 0, weight / base, 0.0).gather(1, cells).reshape(genre.shape)
            gain = (liked * torch.log1p(inverse * share)).sum(-1)
            objective = left + tradeoff * gain
        else:
            objective = left
        best = objective.argmax(1)
        chosen.append(best)
        row = torch.arange(users, device=scores.device)
        left[row, best] = -torch.inf
        total.scatter_add_(1, genre[row, best], weight * share[row, best])
    return torch.stack(chosen, 1)


def _check_smoothing(smoothing: float) -> None:
    if not 0.0 < smoothing <= 1.0:
        raise FormError(
            f"smoothing is {smoothing}, but without any a list that lacks one genre is infinitely bad. Write a number "
            "above 0, up to 1; 0.01 is usual."
        )


def _check_shapes(
    scores: Tensor,
    genres: Tensor,
    taste: Tensor,
    length: int,
    tradeoff: float,
    candidates: Tensor | None,
    rank_weights: Tensor | None,
) -> None:
    users, columns = scores.shape
    if taste.shape != (users, genres.shape[-1]):
        raise FormError(
            f"rerank: taste has shape {tuple(taste.shape)}, but {users} users and G={genres.shape[-1]} genres need "
            f"{(users, genres.shape[-1])}."
        )
    if candidates is None and columns != genres.shape[0]:
        raise FormError(
            f"rerank: scores have {columns} columns but genres {genres.shape[0]} items. Write candidates=, the item of "
            "every column."
        )
    if candidates is not None and candidates.shape != scores.shape:
        raise FormError(f"rerank: candidates have shape {tuple(candidates.shape)} but scores {tuple(scores.shape)}.")
    if not 0.0 <= tradeoff <= 1.0:
        raise FormError(f"rerank: tradeoff is {tradeoff}, but it is a share: write a number from 0 to 1.")
    if length < 1 or bool(((scores > -torch.inf).sum(1) < length).any()):
        raise FormError(f"rerank: length is {length}, but every user needs that many candidates, at least 1.")
    if rank_weights is not None and (rank_weights.shape != (length,) or not bool((rank_weights > 0).all())):
        raise FormError(f"rerank: rank_weights must be {length} numbers above 0, one for every position.")
    if genres.numel():
        Probs(genres)
    Probs(taste)
