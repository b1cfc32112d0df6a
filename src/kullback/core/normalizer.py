"""Stage one: the normaliser of a row, kept as (max, Σ exp), which merges over chunks, shards and threads."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Normalizer(NamedTuple):
    """(max, sum) = (m, Σ_v exp(s_v - m)) of the columns seen so far; a commutative monoid under `merge`."""

    max: Tensor
    sum: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> "Normalizer":
        """Normaliser of the columns in `scores` (..., V); no columns give the identity (-inf, 0)."""
        if scores.shape[-1] == 0:
            zero = scores.sum(-1, keepdim=True)
            return cls(zero - math.inf, zero)
        m = scores.amax(-1, keepdim=True)
        return cls(m, torch.exp(scores - finite_or_zero(m)).sum(-1, keepdim=True))

    def merge(self, other: "Normalizer") -> "Normalizer":
        m = torch.maximum(self.max, other.max)
        base = finite_or_zero(m)
        return Normalizer(m, self.sum * torch.exp(self.max - base) + other.sum * torch.exp(other.max - base))

    def log_probs(self, scores: Tensor) -> Tensor:
        """log(exp(s_v) / Z); the maximum leaves first, so that a common offset costs no digits."""
        return (scores - self.max) - torch.log(self.sum)


def finite_or_zero(m: Tensor) -> Tensor:
    """0 in place of -inf, the maximum of no columns or of columns without mass."""
    return torch.where(m == -math.inf, 0.0, m)
