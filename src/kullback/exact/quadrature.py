"""Integrals over the line: any divergence of two densities from their log-densities.

The line is cut at the ends of both supports. Each piece is mapped to t so that both tails become short (x = c + s sinh t,
low + s e^t, or low + (high - low) σ(t)), cut into panels at the centres and widths of the two distributions, and
integrated by the Gauss-Kronrod rule of 7 and 15 points; the panels with the largest errors are halved until the sum of the
error estimates is below the tolerance, for every row of the batch at once. The integrand is the canonical generator of
the divergence (`core.generators`), which is >= 0: small values keep their digits.

Three checks stand behind the value: the error estimate of the divergence, the integrals of p and of q, which must be one,
and the decay at both ends. An integrand that does not decay towards an infinite end, or that overflows, makes the value
+inf (with zero gradient). What cannot be resolved raises `ToleranceError`.

Differentiable: panels are fixed in t, the log-densities are differentiated at the nodes, and nodes move with the ends of
the supports, so that gradients to those ends are complete too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback._errors import ToleranceError
from kullback.core import generators
from kullback.core.reduction import GeneratorSum, LogAffinity, Pair, Sum
from kullback.core.readings import Weights

from .doubled import doubled
from .support import Measurable, Support, ends, landmarks, log_density, support_of

RELATIVE_TOLERANCE = 1e-10
MASS_TOLERANCE = 1e-9
_MAX_PANELS = 3000
_MAX_ROUNDS = 60
_FAR = 323.0  # x up to 1e140, so that x² does not overflow
_NEAR = 690.0  # down to e^-690 beside an end at zero
_NEGLIGIBLE = -690.0

_KRONROD = (
    (0.991455371120812639206854697526329, 0.022935322010529224963732008058970, 0.0),
    (0.949107912342758524526189684047851, 0.063092092629978553290700663189204, 0.129484966168869693270611432679082),
    (0.864864423359769072789712788640926, 0.104790010322250183839876322541518, 0.0),
    (0.741531185599394439863864773280788, 0.140653259715525918745189590510238, 0.279705391489276667901467771423780),
    (0.586087235467691130294144691693013, 0.169004726639267902826583426598550, 0.0),
    (0.405845151377397166906606412076961, 0.190350578064785409913256402421014, 0.381830050505118944950369775488975),
    (0.207784955007898467600689403773245, 0.204432940075298892414161999234649, 0.0),
    (0.0, 0.209482141084727828012999174891714, 0.417959183673469387755102040816327),
)
_HALF = torch.tensor(_KRONROD, dtype=torch.float64)
_NODES = torch.cat([-_HALF[:, 0], _HALF[:-1, 0].flip(0)])
_K15 = torch.cat([_HALF[:, 1], _HALF[:-1, 1].flip(0)])
_G7 = torch.cat([_HALF[:, 2], _HALF[:-1, 2].flip(0)])
_GRID = (-690, -500, -323, -200, -120, -70, -36, -20, -12, -8, -5, -3, -2, -1, 0, 1, 2, 3, 5, 8, 12, 20, 36, 70, 120, 200, 323, 690)


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

    def __init__(self, sums: tuple[Sum, ...], p: Measurable, q: Measurable) -> None:
        self.p = p if not isinstance(p, torch.distributions.Distribution) else doubled(p)
        self.q = self.p if q is p else (q if not isinstance(q, torch.distributions.Distribution) else doubled(q))
        self.sums = sums
        first = sums[0]
        self.raw_log_q = isinstance(first, GeneratorSum) and first.log_q_slope
        self.order = next((order for order in map(_order, sums) if order is not None), None)
        self.logarithmic = any(isinstance(s, LogAffinity) for s in sums)
        left, right = support_of(self.p), support_of(self.q)
        assert left is not None
        assert right is not None
        self.supports: tuple[Support, Support] = (left, right)
        self.batch = torch.Size(torch.broadcast_shapes(p.batch_shape, q.batch_shape))  # type: ignore[no-untyped-call]
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
        for low, high in zip(edges, edges[1:], strict=False):
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


def _order(total: Sum) -> float | None:
    """a where the integrand is a multiple of p^a q^(1-a)."""
    if isinstance(total, LogAffinity):
        return total.order
    generator = total.generator if isinstance(total, GeneratorSum) else None
    return generator.order if isinstance(generator, generators.alpha) else 2.0 if generator is generators.chi2 else None


def _inside(support: Support, x: Tensor) -> Tensor:
    """x, or another point of the support where x is not inside."""
    low, high = support.low.detach(), support.high.detach()
    bounded = torch.isfinite(low) & torch.isfinite(high)
    other = torch.where(bounded, 0.5 * (low + high), torch.where(torch.isfinite(low), low + 1.0, high - 1.0))
    return torch.where((x > low) & (x < high), x, other)


def _pair(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Pair:
    return Pair(Weights(p.unsqueeze(-1), log_p.unsqueeze(-1)), Weights(q.unsqueeze(-1), log_q.unsqueeze(-1)))


class Panels:
    """The panels of one piece: their edges in t and, per panel, the integrals with their error estimates."""

    def __init__(self, integrand: Integrand, piece: Piece, shift: Tensor | None) -> None:
        self.integrand, self.piece, self.shift = integrand, piece, shift
        edges = integrand.edges(piece)
        self.start, self.stop = edges[:-1], edges[1:]
        self.value, self.error = self.measure(self.start, self.stop)

    def measure(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Integrals (quantities, panels, ...) of |f| over new panels, and error estimates."""
        t, half = _nodes(start, stop)
        values = self.integrand.terms(self.piece, t, self.integrand.keep(self.piece, t))
        scaled = []
        for total, value in zip([*self.integrand.sums, None, None], values, strict=True):
            if isinstance(total, LogAffinity):
                assert self.shift is not None
                value = torch.exp(value - self.shift)
            scaled.append(value)
        f = torch.stack(scaled)
        kronrod, gauss = _rule(_K15, f), _rule(_G7, f)
        spread = _rule(_K15, (f - 0.5 * kronrod.unsqueeze(1)).abs())
        raw = (kronrod - gauss).abs()
        sharp = torch.where(spread > 0, spread * (200.0 * raw / spread.clamp(min=1e-300)) ** 1.5, raw)
        error = torch.where(torch.isfinite(raw), torch.minimum(raw, sharp), 0.0)
        return kronrod * half, error * half

    def halve(self, worst: Tensor) -> None:
        """Replace the panels with these indices (k, ...) by their halves."""
        start, stop = self.start.gather(0, worst), self.stop.gather(0, worst)
        middle = 0.5 * (start + stop)
        value, error = self.measure(torch.cat([start, middle]), torch.cat([middle, stop]))
        k, at = worst.shape[0], worst.expand(self.value.shape[0], *worst.shape)
        self.start = torch.cat([self.start, middle])
        self.stop = torch.cat([self.stop.scatter(0, worst, middle), stop])
        self.value = torch.cat([self.value.scatter(1, at, value[:, :k]), value[:, k:]], 1)
        self.error = torch.cat([self.error.scatter(1, at, error[:, :k]), error[:, k:]], 1)


def _nodes(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    half = 0.5 * (stop - start)
    nodes = _NODES.to(start.device).reshape(-1, *(1,) * start.dim())
    return 0.5 * (start + stop) + half * nodes, half


def _rule(weights: Tensor, f: Tensor) -> Tensor:
    """Σ over the node axis, which is the second."""
    return torch.tensordot(weights.to(f.device), f, ([0], [1]))


@torch.no_grad()
def _refine(integrand: Integrand) -> tuple[list[Panels], Tensor, Tensor]:
    """Panels fine enough, which rows are infinite, and the error estimate (quantities, ...)."""
    shift = _shift(integrand)
    parts = [Panels(integrand, piece, shift) for piece in integrand.pieces()]
    for _ in range(_MAX_ROUNDS):
        total = sum(part.value.nan_to_num(0.0, 0.0, 0.0).abs().sum(1) for part in parts)
        assert isinstance(total, Tensor)
        allowed = RELATIVE_TOLERANCE * total
        infinite = sum((~torch.isfinite(part.value)).any(1).any(0).int() for part in parts) > 0
        assert isinstance(infinite, Tensor)
        error = torch.stack([part.error.sum(1) for part in parts]).sum(0)
        unmet = (error > allowed.clamp(min=1e-300)) & ~infinite
        if not bool(unmet.any()) or sum(part.start.shape[0] for part in parts) > _MAX_PANELS:
            break
        for part in parts:
            count = sum(x.start.shape[0] for x in parts)
            score = (part.error / allowed.clamp(min=1e-300).unsqueeze(1) * unmet.unsqueeze(1)).amax(0)
            needed = int((score > 0.5 / count).sum(0).max())
            if needed > 0:
                part.halve(score.topk(min(needed, 64, score.shape[0]), dim=0).indices)
    infinite = infinite | _growing(parts)
    return parts, infinite, error


def _shift(integrand: Integrand) -> Tensor | None:
    """The largest log-integrand of the first panels: the scale in which a power sum is integrated."""
    if not integrand.logarithmic:
        return None
    best = torch.full(integrand.batch, -math.inf, dtype=torch.float64)
    for piece in integrand.pieces():
        edges = integrand.edges(piece)
        t, _ = _nodes(edges[:-1], edges[1:])
        values = integrand.terms(piece, t, integrand.keep(piece, t))
        for total, value in zip(integrand.sums, values, strict=False):
            if isinstance(total, LogAffinity):
                best = torch.maximum(best, value.flatten(0, 1).amax(0))
    return torch.where(torch.isfinite(best), best, 0.0)


def _growing(parts: list[Panels]) -> Tensor:
    """Rows whose integrand does not decay towards an end of its range, and is not negligible there."""
    rows = torch.zeros(parts[0].integrand.batch, dtype=torch.bool)
    for part in parts:
        low, high = part.piece.range()
        whole = part.value.nan_to_num(0.0, 0.0, 0.0).abs().sum(1)
        for end, step in ((low, 1.0), (high, -1.0)):
            end = end.expand(rows.shape).detach()
            t = torch.stack([end, end + step]).unsqueeze(0)
            values = part.integrand.terms(part.piece, t, part.integrand.keep(part.piece, t))
            for k, total in enumerate(part.integrand.sums):
                value = values[k][0]
                if isinstance(total, LogAffinity):
                    assert part.shift is not None
                    value = torch.exp(value - part.shift)
                f, g = value[0].abs(), value[1].abs()
                rows |= (f > 1e-13 * whole[k]) & (f >= g * (1.0 - 1e-9)) & (f > 0)
    return rows


def integrate(sums: tuple[Sum, ...], p: Measurable, q: Measurable) -> list[Tensor]:
    """The value of each sum for two densities on the line, (...) in float64.

    Raises: ToleranceError where the tolerance is not met or a density does not integrate to one.
    """
    integrand = Integrand(sums, p, q)
    parts, infinite, error = _refine(integrand)
    rows: list[list[Tensor]] = []
    for part in parts:
        t, half = _nodes(part.start, part.stop)
        with torch.no_grad():
            keep = integrand.keep(part.piece, t) & ~infinite
        values = integrand.terms(part.piece, t, keep)
        rows.append([])
        for total, value in zip([*sums, None, None], values, strict=True):
            weights = (_K15.reshape(-1, *(1,) * half.dim()) * half).flatten(0, 1)
            value = value.flatten(0, 1)
            if isinstance(total, LogAffinity):
                none = (value == -math.inf) | (weights == 0)
                value = torch.where(none, -math.inf, torch.where(none, 0.0, value) + torch.log(torch.where(none, 1.0, weights)))
                empty = (value == -math.inf).all(0)
                value = torch.where(empty, -math.inf, torch.logsumexp(torch.where(empty, 0.0, value), 0))
            else:
                value = (weights * value).sum(0)
            rows[-1].append(value)
    results = []
    for k, total in enumerate([*sums, None, None]):
        stacked = torch.stack([row[k] for row in rows])
        if isinstance(total, LogAffinity):
            nowhere = (stacked == -math.inf).all(0)
            results.append(torch.where(nowhere, -math.inf, torch.logsumexp(torch.where(nowhere, 0.0, stacked), 0)))
        else:
            results.append(stacked.sum(0))
    mass_p, mass_q = results[-2:]
    _check(integrand, results, error, infinite, mass_p, mass_q)
    return [torch.where(infinite, math.inf, value) for value in results[:-2]]


def _check(
    integrand: Integrand, results: list[Tensor], error: Tensor, infinite: Tensor, mass_p: Tensor, mass_q: Tensor
) -> None:
    with torch.no_grad():
        for name, mass in (("p", mass_p), ("q", mass_q)):
            off = ((mass - 1.0).abs() > MASS_TOLERANCE) & ~infinite
            if integrand.raw_log_q and name == "q":
                continue
            if bool(off.any()):
                found = mass[off].flatten()[0].item()
                raise ToleranceError(
                    f"quadrature: {name} integrates to {found:.10g}, not 1. If it is an unnormalised Density, subtract "
                    "log of that from its log_prob; if its mass is far from its center, write "
                    "Density(..., center=, scale=); if it has a tail or a singular end that float64 cannot hold, write "
                    "estimate.kl(p, q, method=MonteCarlo(n), generator=g)."
                )
        for k, total in enumerate(integrand.sums):
            scale = torch.ones_like(results[k]) if isinstance(total, LogAffinity) else results[k].abs()
            if isinstance(total, GeneratorSum) and integrand.raw_log_q:
                scale = scale + 1.0
            if isinstance(total, GeneratorSum) and integrand.logarithmic:
                continue
            bad = (error[k] > 1e-8 * scale + 1e-14) & ~infinite
            if bool(bad.any()):
                raise ToleranceError(
                    f"quadrature: the error estimate {error[k][bad].max().item():.2g} of the value "
                    f"{results[k][bad].flatten()[0].item():.6g} is above the tolerance. Write Density(..., center=, scale=) "
                    "around its peaks, or estimate.kl(p, q, method=MonteCarlo(n), generator=g)."
                )
