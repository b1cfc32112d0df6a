"""Integrals over the line: any divergence of two densities from their log-densities.

The line is cut at the ends of both supports and at the kinks of both densities. Each piece is mapped to t so that both
tails become short (x = c + s sinh t, low + s e^t, or low + (high - low) σ(t)), looked at once to see where mass is, cut
into panels over each of which the logarithms change by about as much, and integrated by the Gauss-Kronrod rule of 7 and
15 points; panels with the largest errors are halved until the sum of the error estimates is below the tolerance, for
every row of the batch at once. The integrand is the canonical generator of the divergence (`core.generators`), which is
>= 0: small values keep their digits. Where it overflows, a power sum is read from its logarithm instead.

Three checks stand behind the value: the error estimate of the divergence, the integrals of p and of q, which must be
one, and the decay at both ends. The value is +inf (with zero gradient) where p has mass and q has none, or where the
logarithm of the integrand still does not fall at the outermost place where float64 holds both logarithms: as near to an
end as e^-690, and out to 1e140. A divergence whose terms are at most a multiple of p + q is never infinite. What cannot
be resolved raises `ToleranceError`.

Differentiable, twice too: panels are fixed in t, the log-densities are differentiated at the nodes, and nodes move with
the ends of the supports and with the kinks, so that the terms from there are complete.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback._errors import ToleranceError
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum

from .growth import growth_of
from .integrand import Integrand, Scan, significance, trusted
from .pieces import Piece
from .place import Place, place_of
from .summation import from_logarithm
from .support import Measurable, log_density

RELATIVE_TOLERANCE = 1e-10
MASS_TOLERANCE = 1e-9
_MAX_PANELS = 3000
_MAX_ROUNDS = 60
_FALL = 10.0  # e-folds that the logarithms of both weights change by over a panel, together
_FEWEST, _MOST = 5, 64
_CELLS = 1 << 15
_DEEP = 60.0  # e-folds: where both densities are smaller, it does not matter which is larger
_STEPS = (1e-4, 1e-7)
_STILL = 1e-8  # a logarithm that falls by less per unit of t does not fall

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
NODES = torch.cat([-_HALF[:, 0], _HALF[:-1, 0].flip(0)])
K15 = torch.cat([_HALF[:, 1], _HALF[:-1, 1].flip(0)])
G7 = torch.cat([_HALF[:, 2], _HALF[:-1, 2].flip(0)])


class Panels:
    """The panels of one piece: their edges in t and, per panel, the integrals with their error estimates."""

    def __init__(self, integrand: Integrand, piece: Piece, scan: Scan, shift: Tensor | None) -> None:
        self.integrand, self.piece, self.scan, self.shift = integrand, piece, scan, shift
        edges = first_edges(significance(integrand, scan), scan)
        self.start, self.stop = edges[:-1], edges[1:]
        self.value, self.error = self.measure(self.start, self.stop)

    def measure(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Integrals (quantities, panels, ...) over new panels, and error estimates."""
        rows = max(start[0].numel(), 1)
        several = max(_CELLS // (15 * rows), 1)
        if start.shape[0] > several:  # in parts that stay in cache
            starts, stops = torch.split(start, several), torch.split(stop, several)
            parts = [self.measure(*part) for part in zip(starts, stops, strict=True)]
            return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
        t, half = nodes(start, stop)
        f = torch.stack(self.integrand.values(self.piece, t, self.shift))
        kronrod, gauss = rule(K15, f), rule(G7, f)
        spread = rule(K15, (f - 0.5 * kronrod.unsqueeze(1)).abs())
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


def nodes(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """The 15 nodes of each panel (15, ...), and half its width."""
    half = 0.5 * (stop - start)
    at = NODES.to(start.device).reshape(-1, *(1,) * start.dim())
    return 0.5 * (start + stop) + half * at, half


def rule(weights: Tensor, f: Tensor) -> Tensor:
    """Σ over the node axis, which is the second."""
    value: Tensor = torch.tensordot(weights.to(f.device), f, ([0], [1]))
    return value


def first_edges(level: Tensor, scan: Scan) -> Tensor:
    """Panel edges (K+1, ...), between probes that count: each panel gets an equal share of the logarithms' change."""
    counts = level > 0
    either = counts[1:] | counts[:-1]
    floor = -level.amax(0, keepdim=True).clamp(min=0.0) * 0.0 - 75.0
    change = torch.zeros_like(scan.t[1:])
    for log in (scan.log_p, scan.log_q, *([] if scan.log_power is None else [scan.log_power.nan_to_num(-math.inf)])):
        top = torch.where(torch.isinf(log), -math.inf, log).amax(0, keepdim=True)
        clipped = torch.maximum(log, torch.where(torch.isinf(top), 0.0, top) + floor)
        change = change + (clipped[1:] - clipped[:-1]).abs()
    wide = scan.t[1:] > scan.t[:-1]
    share = torch.where(either & wide, change + 1.0, 0.0)
    sums = torch.cat([torch.zeros_like(share[:1]), share.cumsum(0)])
    whole = sums[-1]
    count = min(max(math.ceil(float(whole.max()) / _FALL), _FEWEST), _MOST)
    steps = torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64).reshape(-1, *(1,) * whole.dim())
    wanted = (steps * whole).reshape(count + 1, -1).T.contiguous()
    flat, t = sums.reshape(len(sums), -1).T.contiguous(), scan.t.reshape(len(sums), -1).T
    above = torch.searchsorted(flat, wanted, right=False).clamp(1, flat.shape[1] - 1)
    # the first edge is where the share begins, not where the probes do
    above[:, 0] = torch.searchsorted(flat, torch.zeros_like(wanted[:, :1]), right=True).clamp(1, flat.shape[1] - 1)[
        :, 0
    ]
    low, high = flat.gather(1, above - 1), flat.gather(1, above)
    part = torch.where(high > low, (wanted - low) / (high - low).clamp(min=1e-300), 0.0).clamp(0.0, 1.0)
    left, right = t.gather(1, above - 1), t.gather(1, above)
    return (left + part * (right - left)).T.reshape(count + 1, *whole.shape)


class Refined(NamedTuple):
    """Panels fine enough, which rows are infinite, and the error estimates (quantities, ...)."""

    parts: list[Panels]
    infinite: Tensor
    error: Tensor
    shift: Tensor | None


@torch.no_grad()
def refine(integrand: Integrand, pieces: list[Piece]) -> Refined:
    """Halve panels until the error estimates are below the tolerance."""
    scans = [integrand.scan(piece) for piece in pieces]
    shift = _shift(integrand, scans)
    infinite, beyond = _ends(integrand, pieces, scans, shift)
    parts = [Panels(integrand, piece, scan, shift) for piece, scan in zip(pieces, scans, strict=True)]
    infinite = infinite | torch.stack([(part.value == math.inf).any(1).any(0) for part in parts]).any(0)
    for _ in range(_MAX_ROUNDS):
        total = torch.stack([part.value.nan_to_num(0.0, 0.0, 0.0).abs().sum(1) for part in parts]).sum(0)
        allowed = RELATIVE_TOLERANCE * total * _digits(integrand, total, shift)
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
    return Refined(parts, infinite, error + beyond, shift)


def _digits(integrand: Integrand, total: Tensor, shift: Tensor | None) -> Tensor:
    """By how much the tolerance may be wider: of a power sum the logarithm is wanted, and a large one is rounded."""
    wanted = torch.ones_like(total)
    for k, one in enumerate(integrand.sums):
        if isinstance(one, LogAffinity):
            assert shift is not None
            wanted[k] = (1e-4 * (torch.log(total[k].clamp(min=1e-300)) + shift).abs()).clamp(min=1.0)
    return wanted


def _shift(integrand: Integrand, scans: list[Scan]) -> Tensor | None:
    """The largest log-integrand of the probes: the scale in which a power sum is integrated."""
    order = next((s.order for s in integrand.sums if isinstance(s, LogAffinity)), None)
    if order is None:
        return None
    best = torch.full(integrand.batch, -math.inf, dtype=torch.float64)
    for scan in scans:
        nowhere = torch.isinf(scan.log_p) | torch.isinf(scan.log_q)
        size = torch.where(nowhere, -math.inf, order * scan.log_p + (1.0 - order) * scan.log_q)
        best = torch.maximum(best, size.amax(0))
    return torch.where(torch.isfinite(best), best, 0.0)


def _ends(integrand: Integrand, pieces: list[Piece], scans: list[Scan], shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows that are infinite, and what may lie beyond the ends (quantities, ...), as an error.

    Infinite: one side has mass where a sum has no room for it, or a sum's size does not fall towards an end.
    Beyond an end an integrand is taken to fall in t as it does in the last step: its integral is f / log(g/f).
    """
    batch = integrand.batch
    infinite = torch.zeros(batch, dtype=torch.bool)
    beyond = torch.zeros(len(integrand.sums) + 2, *batch, dtype=torch.float64)
    for piece, scan in zip(pieces, scans, strict=True):
        for outward in (-1.0, 1.0):
            last = _outermost(integrand, piece, scan, outward, whole=True)
            left = [torch.exp(x[0]) / _fall(x)[0].clamp(min=1e-6) for x in last[:2]]
            for k in range(len(integrand.sums)):
                beyond[k] += left[0] + left[1]
            beyond[-2] += left[0]
            beyond[-1] += left[1]
            if all(growth.bounded for growth in integrand.growth):
                continue
            last = _outermost(integrand, piece, scan, outward, whole=False)
            for k, (growth, size) in enumerate(zip(integrand.growth, integrand.sizes(last), strict=True)):
                if size is None:
                    continue
                scale = shift if growth.order is not None and shift is not None else torch.zeros_like(size[0])
                there = (size[0] > -math.inf) & ~piece.empty
                size = torch.where(there, size, scale - 1e5)
                fall, steady = _fall(size)
                still = steady & (size[0] > scale - 1e4)
                infinite |= still
                tail = torch.exp((size[0] - scale).clamp(max=700.0)) / fall.clamp(min=1e-6)
                beyond[k] += torch.where(still | ~there, 0.0, tail)
    return infinite, beyond


def _fall(log: Tensor) -> tuple[Tensor, Tensor]:
    """How fast a logarithm falls per unit of t towards an end, from values at and before it; whether it does not.

    The shorter step sees peaks that the longer one would step over.
    """
    far, near = ((log[k] - log[0]).nan_to_num(0.0) / step for k, step in ((1, _STEPS[0]), (2, _STEPS[1])))
    return torch.maximum(far, near), (far < _STILL) & (near < 1e-3)


def _outermost(
    integrand: Integrand, piece: Piece, scan: Scan, outward: float, *, whole: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """At the last t towards one end, and a step before it, twice: the logarithms (3, ...).

    whole: the end of the piece's reach. Otherwise the last t at which both logarithms are to be trusted.
    """
    end = scan.t[-1 if outward > 0 else 0]
    if not whole:
        good = trusted(integrand, scan.log_p, scan.log_q)
        index = torch.arange(scan.t.shape[0]).reshape(-1, *(1,) * end.dim())
        at = torch.where(good, index if outward > 0 else scan.t.shape[0] - index, -1).amax(0, keepdim=True)
        at = (at if outward > 0 else scan.t.shape[0] - at).clamp(0, scan.t.shape[0] - 1)
        inner = scan.t.gather(0, at)[0]
        outer = scan.t.gather(0, (at + int(outward)).clamp(0, scan.t.shape[0] - 1))[0]
        if bool((inner != outer).any()):
            for _ in range(30):
                middle = 0.5 * (inner + outer)
                log_p, log_q, _ = integrand.logs(piece, middle.unsqueeze(0))
                fine = trusted(integrand, log_p, log_q)[0]
                inner, outer = torch.where(fine, middle, inner), torch.where(fine, outer, middle)
        end = inner
    return integrand.logs(piece, torch.stack([end, *(end - outward * step for step in _STEPS)]))


def integrate(sums: tuple[Sum[Any], ...], p: Measurable, q: Measurable) -> list[Tensor]:
    """The value of each sum for two densities on the line, (...) in float64.

    Raises: NoExactMethod for a generator that does not say how it grows; ToleranceError where the tolerance is not met
    or a density does not integrate to one.
    """
    outer = next((a for a in (growth_of(total).order for total in sums) if a is not None), None)
    whole = sums
    if outer is not None and not any(isinstance(s, LogAffinity) for s in sums):
        whole = (*sums, LogAffinity(outer))
    integrand = Integrand(whole, p, q)
    pieces = integrand.pieces()  # they keep the gradients of their ends
    if any(_has_corner(total) for total in sums):
        pieces = integrand.pieces(crossings(integrand, pieces))
    found = refine(integrand, pieces)
    values = _values(integrand, found)
    slivers = _slivers(integrand)
    if slivers is not None:
        values[: len(sums)] = [v + torch.where(found.infinite, 0.0, s) for v, s in zip(values, slivers, strict=False)]
    _check(integrand, found, values)
    results = [torch.where(found.infinite, math.inf, value) for value in values[:-2]]
    results = [torch.where(integrand.undefined, math.nan, value) for value in results]
    if len(whole) > len(sums):
        (total,) = sums
        assert total.power is not None
        return [from_logarithm(total.power.scale, *results)]
    return results


def _has_corner(total: Sum[Any]) -> bool:
    """Whether the terms have a corner where p = q, as |p - q| has."""
    return isinstance(total, GeneratorSum) and total.generator.corner and total.power is None


def crossings(integrand: Integrand, pieces: list[Piece]) -> tuple[Tensor, ...]:
    """Where p = q, +inf in rows that have fewer such points; they move with the parameters."""
    found: list[Tensor] = []
    for piece in pieces:
        scan = integrand.scan(piece)
        level = torch.minimum(scan.log_p, scan.log_q) > -_DEEP
        sign = torch.sign(torch.where(level, scan.log_q - scan.log_p, 0.0))
        turns = (sign[1:] * sign[:-1] < 0).to(torch.int8)
        several = int(turns.sum(0).max()) if turns.numel() else 0
        if several == 0:
            continue
        is_turn, at = turns.sort(dim=0, descending=True, stable=True)
        is_turn, at = is_turn[:several].bool(), at[:several]
        low, high = scan.t.gather(0, at), scan.t.gather(0, at + 1)
        rising = sign.gather(0, at + 1) > 0
        with torch.no_grad():
            for _ in range(30):
                middle = 0.5 * (low + high)
                log_p, log_q, _ = integrand.logs(piece, middle)
                above = (log_q > log_p) == rising
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            t, step = 0.5 * (low + high), 1e-4 * (1.0 + low.abs())
            around = [integrand.logs(piece, t + s * step) for s in (-1.0, 1.0)]
            slope = ((around[1][1] - around[1][0]) - (around[0][1] - around[0][0])) / (2.0 * step)
            good = is_turn & (slope != 0) & torch.isfinite(slope)
            t = torch.where(good, t, scan.t[scan.t.shape[0] // 2])
        log_p, log_q, _ = integrand.logs(piece, t, (t, t))
        t = t - torch.where(good, (log_q - log_p) / torch.where(good, slope, 1.0), 0.0)  # Newton, with its gradient
        x = piece.points(t)[0].x
        found += list(torch.where(good, x, math.inf).unbind(0))
    return tuple(found)


def _slivers(integrand: Integrand) -> list[Tensor] | None:
    """Nothing, with a slope: where an end of p lies on one of q and either moves, q's mass between them comes or goes.

    As p lies inside of q, this is at_p_zero q(end) times the gap, for a density that is finite at its end.
    """
    left, right = integrand.supports
    gaps = ((left.low - right.low, right.low, 1.0), (right.high - left.high, right.high, -1.0))
    if not any(gap.requires_grad for gap, _, _ in gaps):
        return None
    total = torch.zeros(integrand.batch, dtype=torch.float64)
    read = log_density(integrand.q)
    for gap, end, inward in gaps:
        touching = (gap == 0) & torch.isfinite(end)
        if not gap.requires_grad or not bool(touching.any()):
            continue
        gap, end = torch.where(touching, gap, 0.0), torch.where(torch.isfinite(end), end, 0.0)
        x = end + 0.5 * inward * gap
        values = []
        for near in (-700.0, -600.0):  # how the density depends on the distance to its end
            rough = place_of(x + inward * math.exp(near), right)
            close = torch.full_like(x, near)
            place = Place(x, close, rough.below) if inward > 0 else Place(x, rough.above, close)
            values.append(read(place))
        regular = touching & ((values[0] - values[1]).abs() < 1e-6)
        total = total + torch.where(regular, gap * torch.exp(torch.where(regular, values[0], 0.0)), 0.0)
    return [
        s.generator.at_p_zero * total
        if isinstance(s, GeneratorSum) and s.generator.at_p_zero < math.inf
        else torch.zeros_like(total)
        for s in integrand.sums
    ]


def _values(integrand: Integrand, found: Refined) -> list[Tensor]:
    """Every quantity from the panels, through the nodes again if a gradient is asked for."""
    if torch.is_grad_enabled() and _wants_gradient(integrand, found.parts):
        rows = []
        for part in found.parts:
            t, half = nodes(part.start, part.stop)
            values = integrand.differentiable(part.piece, t, found.shift, part.scan, found.infinite | part.piece.empty)
            weights = K15.reshape(-1, *(1,) * half.dim()) * half
            rows.append(torch.stack([(weights * value).sum((0, 1)) for value in values]))
        totals = torch.stack(rows).sum(0)
    else:
        totals = torch.stack([part.value.sum(1) for part in found.parts]).sum(0)
    results = list(totals.unbind(0))
    for k, total in enumerate(integrand.sums):
        if isinstance(total, LogAffinity):
            assert found.shift is not None
            none = results[k] == 0
            log = torch.log(torch.where(none, 1.0, results[k])) + found.shift
            results[k] = torch.where(none, -math.inf, log)
    return results


def _wants_gradient(integrand: Integrand, parts: list[Panels]) -> bool:
    part = parts[0]
    middle = 0.5 * (part.start[:1] + part.stop[:1])
    logs = integrand.logs(part.piece, middle, (middle, middle))
    return any(x.requires_grad for x in logs) or any(
        x.requires_grad for p in parts for x in (p.piece.low, p.piece.high)
    )


def _check(integrand: Integrand, found: Refined, results: list[Tensor]) -> None:
    mass_p, mass_q = results[-2:]
    settled = found.infinite | integrand.undefined
    with torch.no_grad():
        for name, mass in (("p", mass_p), ("q", mass_q)):
            off = ~((mass - 1.0).abs() <= MASS_TOLERANCE) & ~settled
            if integrand.raw_log_q and name == "q":
                continue
            if bool(off.any()):
                value = mass[off].flatten()[0].item()
                raise ToleranceError(
                    f"quadrature: {name} integrates to {value:.10g}, not 1. If it is an unnormalised Density, subtract "
                    "log of that from its log_prob; if its mass is far from its center, write "
                    "Density(..., center=, scale=); if it has a tail or a singular end that float64 cannot hold, write "
                    "estimate.kl(p, q, method=MonteCarlo(n), generator=g)."
                )
        for k, total in enumerate(integrand.sums):
            scale = results[k].abs()
            if isinstance(total, LogAffinity):
                scale = torch.where(torch.isinf(scale), 1.0, scale.clamp(min=1.0))
            error = found.error[k]
            if isinstance(total, LogAffinity):
                error = error / torch.exp(results[k] - found.shift).clamp(min=1e-300)  # type: ignore[operator]
            if isinstance(total, GeneratorSum) and integrand.raw_log_q:
                scale = scale + 1.0
            if isinstance(total, GeneratorSum) and integrand.logarithmic:
                continue
            bad = ~(error <= 1e-8 * scale + 1e-14) & ~settled
            if bool(bad.any()):
                raise ToleranceError(
                    f"quadrature: the error estimate {error[bad].max().item():.2g} of the value "
                    f"{results[k][bad].flatten()[0].item():.6g} is above the tolerance. Write "
                    "Density(..., center=, scale=) around its peaks, or estimate.kl(p, q, method=MonteCarlo(n), "
                    "generator=g)."
                )
