"""Classes that a side knows only together, as one cell on both sides: coarse-grained, which by data processing never
makes two distributions more different.

The cells of a coarse row are the V classes, of which those in the rest have no mass on either side and so count for
nothing, and one more, the rest.
"""

import torch
from torch import Tensor

from .normalizer import Normalizer, finite_or_zero
from .readings import Partial, Side, Weights


def told_apart(p: Side, q: Side) -> Tensor | None:
    """(..., V) bool: the classes that both sides tell apart from all others; None: every one."""
    one, other = p.alone(), q.alone()
    if one is None or other is None:
        return other if one is None else one
    return one & other


def joined(weights: Weights, alone: Tensor) -> Weights:
    """(..., V+1): the classes that stand alone, then the sum of all others."""
    w, log_w = weights
    others = torch.where(alone, -torch.inf, log_w)
    m, s = Normalizer.of(others)
    none = m == -torch.inf
    log_rest = torch.where(none, m, finite_or_zero(m) + torch.log(torch.where(none, 1.0, s)))
    return Weights(
        torch.cat([torch.where(alone, w, 0.0), torch.exp(log_rest)], -1),
        torch.cat([torch.where(alone, log_w, -torch.inf), log_rest], -1),
    )


def refined(partial: Partial, fine: Weights, coarse: Weights, alone: Tensor) -> Partial:
    """The derivatives in the V classes, from those in the V+1 cells: a class of the rest sees the rest's, by its share.

    What a class without mass sees, if the rest has some, is the slope of the textbook sum in the rest's mass.
    """
    slope = torch.as_tensor(partial.slope, dtype=fine.w.dtype, device=fine.w.device).expand_as(partial.dlog)
    mass, log_mass, rest = coarse.w[..., -1:], coarse.log_w[..., -1:], partial.dlog[..., -1:]
    none = log_mass == -torch.inf
    # by logarithms: a rest too small for a number still has shares
    share = torch.where(none, 0.0, torch.exp(fine.log_w - torch.where(none, 0.0, log_mass)))
    empty = mass == 0
    per_mass = rest / torch.where(empty, 1.0, mass)
    of_rest = torch.where(empty, slope[..., -1:], per_mass - partial.plain)
    return Partial(
        torch.where(alone, partial.dlog[..., :-1], rest * torch.where(alone, 0.0, share)),
        partial.total,
        partial.plain,
        torch.where(alone, slope[..., :-1], of_rest),
    )


def shared_out(terms: Tensor, alone: Tensor) -> Tensor:
    """(..., V) of (..., V+1) terms: the rest's in equal parts to its classes, so that they add up to the same."""
    others = (~alone).sum(-1, keepdim=True).clamp(min=1)
    return torch.where(alone, terms[..., :-1], terms[..., -1:] / others)
