"""What a quadrature integrates: the line cut into pieces, each with its map, and a pair of densities on it."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kullback.core.readings import Weights
from kullback.core.reduction import GeneratorSum, LogAffinity, Pair, Sum

from .doubled import doubled
from .shapes import batch_of
from .summation import tail_of
from .support import Measurable, Support, ends, landmarks, log_density, support_of

_FAR = 323.0  # x up to 1e140, so that x² does not overflow
_NEAR = 690.0  # down to e^-690 beside an end at zero
_NEGLIGIBLE = -690.0
# panel edges in t to start from
_GRID = (
    -690,
    -500,
    -323,
    -200,
    -120,
    -70,
    -36,
    -20,
    -12,
    -8,
    -5,
    -3,
    -2,
    -1,
    0,
    1,
    2,
    3,
    5,
    8,
    12,
    20,
    36,
    70,
    120,
    200,
    323,
    690,
)


@dataclass(frozen=True)
class Piece:
    """Part of the line between two neighbouring ends of supports, with its map from t."""

    low: Tensor
    high: Tensor
    center: Tensor
    scale: Tensor
    in_p: Tensor
    in_q: Tensor

    @property
    def kind(self) -> tuple[bool, bool]:
        return bool(torch.isfinite(self.low).all()), bool(torch.isfinite(self.high).all())

    def points(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x(t) and log dx/dt; the ends keep their gradients."""
        below, above = self.kind
        if below and above:
            width = self.high - self.low
            width = torch.where(width > 0, width, 1.0)
            x = torch.where(t < 0, self.low + width * torch.sigmoid(t), self.high - width * torch.sigmoid(-t))
            return x, torch.log(width) - torch.nn.functional.softplus(t) - torch.nn.functional.softplus(-t)
        if below:
            return self.low + self.scale * torch.exp(t), torch.log(self.scale) + t
        if above:
            return self.high - self.scale * torch.exp(t), torch.log(self.scale) + t
        a = t.abs()
        log_cosh = a + torch.log1p(torch.exp(-2.0 * a)) - math.log(2.0)
        return self.center + self.scale * torch.sinh(t), torch.log(self.scale) + log_cosh

    def position(self, x: Tensor) -> Tensor:
        """t(x), for points anywhere: those outside go to the nearest end."""
        below, above = self.kind
        if below and above:
            share = ((x - self.low) / (self.high - self.low).clamp(min=1e-300)).clamp(1e-300, 1.0 - 1e-16)
            return torch.logit(share)
        if below:
            return torch.log(((x - self.low) / self.scale).clamp(min=1e-300))
        if above:
            return torch.log(((self.high - x) / self.scale).clamp(min=1e-300))
        return torch.asinh((x - self.center) / self.scale)

    def range(self) -> tuple[Tensor, Tensor]:
        """How far t reaches: to 1e140, and as near to an end as float64 can tell a point from it."""
        below, above = self.kind

        def reach(end: Tensor, unit: Tensor) -> Tensor:
            resolved = -torch.log(4e-16 * end.abs() / unit.clamp(min=1e-300))
            return torch.where(end == 0, _NEAR, resolved.clamp(1.0, _NEAR))

        if below and above:
            width = self.high - self.low
            return -reach(self.low, width), reach(self.high, width)
        far = torch.full_like(self.center, _FAR)
        if below:
            return -reach(self.low, self.scale).expand_as(far), far
        if above:
            return -reach(self.high, self.scale).expand_as(far), far
        return -far, far


class Integrand:
    """The cells of a pair of densities, as the core's sums read them."""

    def __init__(self, sums: tuple[Sum[Any], ...], p: Measurable, q: Measurable) -> None:
        self.p = p if not isinstance(p, torch.distributions.Distribution) else doubled(p)
        self.q = self.p if q is p else (q if not isinstance(q, torch.distributions.Distribution) else doubled(q))
        self.sums = sums
        first = sums[0]
        self.raw_log_q = isinstance(first, GeneratorSum) and first.generator.log_q_slope
        _, self.order = tail_of(sums)
        self.logarithmic = any(isinstance(s, LogAffinity) for s in sums)
        left, right = support_of(self.p), support_of(self.q)
        assert left is not None
        assert right is not None
        self.supports: tuple[Support, Support] = (left, right)
        self.batch = batch_of(p, q)
        self.marks = (self._marks(self.p), self._marks(self.q))

    def _marks(self, d: Measurable) -> tuple[Tensor, Tensor]:
        """Centres and widths, (K, *batch)."""
        missing = len(self.batch) - len(d.batch_shape)
        centers, widths = (
            m.reshape(m.shape[0], *(1,) * (missing + len(d.batch_shape) + 1 - m.dim()), *m.shape[1:]).expand(
                m.shape[0], *self.batch
            )
            for m in landmarks(d)
        )
        return centers, widths

    def pieces(self) -> list[Piece]:
        left, right = self.supports
        ends_p, ends_q = ends(self.p, left), ends(self.q, right)
        cuts = [end.expand(self.batch) for end in (ends_p if self.raw_log_q else ends_p + ends_q)]
        infinity = torch.full(self.batch, math.inf, dtype=torch.float64)
        inner = list(torch.stack(cuts).sort(0).values.unbind(0)) if cuts else []
        edges = [-infinity, *inner, infinity]
        center, width = self.marks[0]
        result = []
        for low, high in pairwise(edges):
            in_p = (left.low <= low) & (high <= left.high)
            in_q = (right.low <= low) & (high <= right.high)
            if not bool((in_p if self.raw_log_q else in_p | in_q).any()):
                continue
            scale = width[0]
            if bool(torch.isfinite(low).all()):
                scale = torch.maximum(scale, (center[0] - low.detach()).abs() * 1e-3)
            result.append(Piece(low, high, center[0], scale, in_p.detach(), in_q.detach()))
        return result

    def edges(self, piece: Piece) -> Tensor:
        """Panel edges (M+1, ...) to start from."""
        start, stop = piece.range()
        marks = [torch.as_tensor(float(g)).double().expand(self.batch) for g in _GRID]
        for centers, widths in self.marks:
            for k in (-8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0):
                marks += list(piece.position(centers + k * widths).unbind(0))
        inner = torch.stack(marks).detach()
        return torch.minimum(torch.maximum(inner, start.detach()), stop.detach()).sort(0).values

    def logs(self, piece: Piece, t: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """log p and log q per unit of t, and log dx/dt; where not `keep`, cells hold no mass and no gradient."""
        x, log_slope = piece.points(t)
        found = []
        sides = zip((self.p, self.q), (piece.in_p, piece.in_q), self.marks, self.supports, strict=True)
        for d, inside, (centers, _), support in sides:
            use = inside.expand_as(x) if keep is None else inside & keep
            value = log_density(d, torch.where(use, x, _inside(support, centers[0])))
            found.append(torch.where(use, value + log_slope, -math.inf))
        return found[0], found[1], log_slope

    def keep(self, piece: Piece, t: Tensor) -> Tensor:
        """Cells that count: where log q has overflowed beyond p's reach, nothing does."""
        log_p, log_q, _ = self.logs(piece, t)
        if self.raw_log_q:
            return (log_p > _NEGLIGIBLE) & (piece.high > piece.low)
        heavy = torch.maximum(log_p, log_q)
        if self.order is not None:
            powers = self.order * log_p + (1.0 - self.order) * log_q
            heavy = torch.where((log_p > -math.inf) & (log_q > -math.inf), torch.maximum(heavy, powers), heavy)
        overflown = (log_p == -math.inf) & piece.in_p | (log_q == -math.inf) & piece.in_q
        return ((heavy > _NEGLIGIBLE) & ~(overflown & (heavy < -600.0)) | heavy.isnan()) & (piece.high > piece.low)

    def terms(self, piece: Piece, t: Tensor, keep: Tensor) -> list[Tensor]:
        """Every sum's integrand (a LogAffinity: its logarithm), then p and q themselves."""
        log_p, log_q, log_slope = self.logs(piece, t, keep)
        p, q = torch.exp(log_p), torch.exp(log_q)
        if self.raw_log_q:
            log_q = torch.where(log_q == -math.inf, -math.inf, log_q - log_slope)
        values = []
        # a cell where both weights have underflowed counts for nothing; one alone is the generators' business
        lost = (p == 0) & (q == 0)
        left, right = torch.where(lost, -math.inf, log_p), torch.where(lost, -math.inf, log_q)
        for total in self.sums:
            pair = _pair(p, left, q, right) if isinstance(total, GeneratorSum) else _pair(p, log_p, q, log_q)
            value = total.rows(pair)
            if self.logarithmic and isinstance(total, GeneratorSum):  # Rényi far away reads the logarithm instead
                value = torch.where(torch.isfinite(value), value, 0.0)
            values.append(value)
        return [*values, p, q]


def _inside(support: Support, x: Tensor) -> Tensor:
    """x, or another point of the support where x is not inside."""
    low, high = support.low.detach(), support.high.detach()
    bounded = torch.isfinite(low) & torch.isfinite(high)
    other = torch.where(bounded, 0.5 * (low + high), torch.where(torch.isfinite(low), low + 1.0, high - 1.0))
    return torch.where((x > low) & (x < high), x, other)


def _pair(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Pair:
    return Pair(Weights(p.unsqueeze(-1), log_p.unsqueeze(-1)), Weights(q.unsqueeze(-1), log_q.unsqueeze(-1)))
