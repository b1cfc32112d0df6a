"""The line cut into pieces at the ends and kinks of two densities, each piece with its chart t ↦ x."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .place import Place, Support, log_gap
from .special import LOG_2


@dataclass(frozen=True)
class Piece:
    """Part of the line between two neighbouring cuts, per row; a row in which they coincide is empty.

    in_p, in_q   where the densities live
    owned        per side and end: whether the cut is that side's own end, so that the distance to it cannot change
    """

    low: Tensor
    high: Tensor
    bounded: tuple[bool, bool]
    center: Tensor
    scale: Tensor
    inside: tuple[Tensor, Tensor]
    owned: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

    @property
    def empty(self) -> Tensor:
        return ~(self.inside[0] | self.inside[1])

    def points(self, t: Tensor) -> tuple[Place, Tensor]:
        """x(t) with its distances to the cuts, and log dx/dt; the cuts keep their gradients."""
        below, above = self.bounded
        infinity = torch.full((), math.inf, dtype=t.dtype)
        if below and above:
            width = self.high - self.low
            width = torch.where(width > 0, width, 1.0)
            x = torch.where(t < 0, self.low + width * torch.sigmoid(t), self.high - width * torch.sigmoid(-t))
            log_width, up, down = torch.log(width), logsigmoid(t), logsigmoid(-t)
            return Place(x, log_width + up, log_width + down), log_width + up + down
        log_scale = torch.log(self.scale)
        if below:
            gap = log_scale + t
            return Place(self.low + torch.exp(gap), gap, infinity), gap
        if above:
            gap = log_scale + t
            return Place(self.high - torch.exp(gap), infinity, gap), gap
        a = t.abs()
        log_cosh = a + torch.log1p(torch.exp(-2.0 * a)) - LOG_2
        away = self.scale * torch.sinh(t.clamp(-_STEEP, _STEEP))
        if bool((a > _STEEP).any()):  # a small scale, at which sinh may overflow long before x does
            away = torch.where(a > _STEEP, torch.sign(t) * torch.exp(log_scale + a - LOG_2), away)
        return Place(self.center + away, infinity, infinity), log_scale + log_cosh

    def place(self, side: int, support: Support, at: Place) -> Place:
        """The same points with their distances to the ends of one side's support."""
        above, below = at.above, at.below
        if self.bounded[0] or bool(torch.isfinite(support.low).any()):
            above = self._distance(at.x - support.low, at.above, self.low - support.low, self.owned[side][0])
        if self.bounded[1] or bool(torch.isfinite(support.high).any()):
            below = self._distance(support.high - at.x, at.below, support.high - self.high, self.owned[side][1])
        return Place(at.x, above, below)

    def _distance(self, gap: Tensor, known: Tensor, apart: Tensor, own: Tensor) -> Tensor:
        """log of the distance to an end, from the chart where the cut is at that end.

        A cut of the other side's that lies there too may move away from it: that slope is apart / gap.
        """
        here = (apart == 0) | (torch.isinf(gap) & torch.isfinite(apart))  # also where x overflows
        log = torch.where(here, known, log_gap(gap))
        if torch.is_grad_enabled() and apart.requires_grad:
            loose = (apart == 0) & ~own
            log = log + torch.where(
                loose, torch.log1p(torch.where(loose, apart, 0.0) * torch.exp(-torch.where(loose, known, 0.0))), 0.0
            )
        return log

    def position(self, x: Tensor) -> Tensor:
        """t(x), for points anywhere: those outside go to the nearest end."""
        below, above = self.bounded
        if below and above:
            share = ((x - self.low) / (self.high - self.low).clamp(min=1e-300)).clamp(1e-300, 1.0 - 1e-16)
            return torch.logit(share)
        if below:
            return torch.log(((x - self.low) / self.scale).clamp(1e-300, 1e300))
        if above:
            return torch.log(((self.high - x) / self.scale).clamp(1e-300, 1e300))
        return torch.asinh((x - self.center) / self.scale)

    def reach(self, sharp: bool, far: bool) -> tuple[Tensor, Tensor]:
        """How far t goes: to x = 1e140 and as near to an end as float64 tells a point from it, or, for densities that
        read the logarithms of the distances, a million e-folds."""
        below, above = self.bounded

        def near(end: Tensor, unit: Tensor) -> Tensor:
            if sharp:
                return torch.full_like(end, _LOGARITHMIC)
            resolved = -torch.log(4e-16 * end.abs() / unit.clamp(min=1e-300))
            return torch.where(end == 0, _NEAR, resolved.clamp(1.0, _NEAR))

        if below and above:
            width = self.high - self.low
            return -near(self.low, width), near(self.high, width)
        away = _FAR - torch.log(self.scale).clamp(max=0.0)
        if far and sharp:
            away = torch.full_like(self.center, _LOGARITHMIC)
        if below:
            return -near(self.low, self.scale).expand_as(away), away
        if above:
            return -near(self.high, self.scale).expand_as(away), away
        return -away, away


_FAR = 323.0  # x up to 1e140 at a scale of 1 or less, so that x² does not overflow
_STEEP = 300.0
_NEAR = 690.0  # down to e^-690 beside an end at zero
_LOGARITHMIC = 1e6


@dataclass(frozen=True)
class Cut:
    """Where the line is cut: an end of p's support (0), of q's (1), or a kink (2); it moves with its gradients."""

    x: Tensor
    owner: int


def cut(
    supports: tuple[Support, Support],
    lows: list[Cut],
    highs: list[Cut],
    batch: torch.Size,
    center: Tensor,
    width: Tensor,
) -> list[Piece]:
    """The pieces in which at least one density lives. At one place, an end of p lies inside of one of q."""
    ordered = [*lows, *highs]
    infinity = torch.full(batch, math.inf, dtype=torch.float64)
    if ordered:
        stacked = torch.stack([c.x.expand(batch) for c in ordered])
        sorted_, at = stacked.sort(dim=0, stable=True)
        owners = torch.tensor([c.owner for c in ordered])[at]
        inner, owned = list(sorted_.unbind(0)), list(owners.unbind(0))
    else:
        inner, owned = [], []
    none = torch.full(batch, 2)
    edges = [(-infinity, none), *zip(inner, owned, strict=True), (infinity, none)]
    pieces = []
    for (low, low_owner), (high, high_owner) in pairwise(edges):
        wide = high > low
        inside = tuple(((s.low <= low) & (high <= s.high) & wide).detach() for s in supports)
        some = inside[0] | inside[1]
        finite_low, finite_high = torch.isfinite(low), torch.isfinite(high)
        for bounded in ((True, True), (True, False), (False, True), (False, False)):
            rows = some & (finite_low == bounded[0]) & (finite_high == bounded[1])
            if not bool(rows.any()):
                continue
            bottom = torch.where(rows, low, 0.0) if bounded[0] else -infinity
            top = torch.where(rows, high, 0.0) if bounded[1] else infinity
            scale = width
            if bounded[0] != bounded[1]:
                edge = bottom if bounded[0] else top
                scale = torch.maximum(width, (center - edge.detach()).abs() * 1e-3)
            owned_by = tuple((low_owner == side, high_owner == side) for side in (0, 1))
            pieces.append(
                Piece(bottom, top, bounded, center, scale, (inside[0] & rows, inside[1] & rows), owned_by)  # type: ignore
            )
    return pieces
