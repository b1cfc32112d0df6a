"""Integrals over the line: any divergence of two densities from their log-densities.

The line is cut at the ends of both supports. Each piece is mapped to t so that both tails become short
(x = c + s sinh t, low + s e^t, or low + (high - low) σ(t)), cut into panels at the centres and widths of the two
distributions, and integrated by the Gauss-Kronrod rule of 7 and 15 points; the panels with the largest errors are
halved until the sum of the error estimates is below the tolerance, for every row of the batch at once. The integrand is
the canonical generator of the divergence (`core.generators`), which is >= 0: small values keep their digits.

Three checks stand behind the value: the error estimate of the divergence, the integrals of p and of q, which must be
one, and the decay at both ends. An integrand that does not decay towards an end, or that overflows, makes the value
+inf (with zero gradient). What cannot be resolved raises `ToleranceError`.

Differentiable: panels are fixed in t, the log-densities are differentiated at the nodes, and nodes move with the ends
of the supports, so that gradients to those ends are complete too.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kullback._errors import ToleranceError
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum

from .integrand import Integrand, Piece
from .support import Measurable

RELATIVE_TOLERANCE = 1e-10
MASS_TOLERANCE = 1e-9
_MAX_PANELS = 3000
_MAX_ROUNDS = 60

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
    value: Tensor = torch.tensordot(weights.to(f.device), f, ([0], [1]))
    return value


@torch.no_grad()
def _refine(integrand: Integrand, pieces: list[Piece]) -> tuple[list[Panels], Tensor, Tensor]:
    """Panels fine enough, which rows are infinite, and the error estimate (quantities, ...)."""
    shift = _shift(integrand, pieces)
    parts = [Panels(integrand, piece, shift) for piece in pieces]
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
    growing, beyond = _ends(parts)
    error = torch.cat([error[: len(beyond)] + beyond, error[len(beyond) :]])
    return parts, infinite | growing, error


def _shift(integrand: Integrand, pieces: list[Piece]) -> Tensor | None:
    """The largest log-integrand of the first panels: the scale in which a power sum is integrated."""
    if not integrand.logarithmic:
        return None
    best = torch.full(integrand.batch, -math.inf, dtype=torch.float64)
    for piece in pieces:
        edges = integrand.edges(piece)
        t, _ = _nodes(edges[:-1], edges[1:])
        values = integrand.terms(piece, t, integrand.keep(piece, t))
        for total, value in zip(integrand.sums, values, strict=False):
            if isinstance(total, LogAffinity):
                best = torch.maximum(best, value.flatten(0, 1).amax(0))
    return torch.where(torch.isfinite(best), best, 0.0)


def _ends(parts: list[Panels]) -> tuple[Tensor, Tensor]:
    """Rows whose integrand does not decay towards an end and is not negligible there; and what lies beyond the ends.

    There an integrand is taken to decay in t as it does in the last step: the integral is f / log(g/f) of the last two.
    """
    batch = parts[0].integrand.batch
    rows = torch.zeros(batch, dtype=torch.bool)
    beyond = torch.zeros(len(parts[0].integrand.sums), *batch, dtype=torch.float64)
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
                growing = (f > 1e-13 * whole[k]) & (f >= g * (1.0 - 1e-9)) & (f > 0)
                decays = (f > 0) & (f < g) & torch.isfinite(g) & ~growing
                rows |= growing
                beyond[k] += torch.where(decays, f / torch.log(torch.where(decays, g / f, 2.0)), 0.0)
    return rows, beyond


def integrate(sums: tuple[Sum[Any], ...], p: Measurable, q: Measurable) -> list[Tensor]:
    """The value of each sum for two densities on the line, (...) in float64.

    Raises: ToleranceError where the tolerance is not met or a density does not integrate to one.
    """
    integrand = Integrand(sums, p, q)
    parts, infinite, error = _refine(integrand, integrand.pieces())  # the pieces keep the gradients of their ends
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
                heights = torch.where(none, 0.0, value) + torch.log(torch.where(none, 1.0, weights))
                value = torch.where(none, -math.inf, heights)
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
                    f"{results[k][bad].flatten()[0].item():.6g} is above the tolerance. Write "
                    "Density(..., center=, scale=) around its peaks, or estimate.kl(p, q, method=MonteCarlo(n), "
                    "generator=g)."
                )
