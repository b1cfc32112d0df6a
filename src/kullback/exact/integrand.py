"""What a quadrature integrates: a pair of densities on pieces of the line, in the log domain."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kullback._errors import ToleranceError
from kullback.core.readings import Weights
from kullback.core.reduction import GeneratorSum, LogAffinity, Pair, Sum
from kullback.forms.density import Density

from .doubled import doubled
from .growth import Growth, growth_of, log_size
from .pieces import Cut, Piece, cut
from .place import Place, Support, place_of
from .shapes import batch_of
from .support import Measurable, ends, is_far, is_sharp, kinks, landmarks, log_density, support_of

NEGLIGIBLE = -690.0  # a weight of e^-690 counts for nothing, whatever multiplies it
_FLOOR = -1e300  # where a density in closed form overflows; it is not zero there
_TRUSTED = -1e290
_FADED = 75.0  # e-folds below its largest, where a term leaves no digit
# t to look at: wherever mass may be
_GRID = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 36.0, 70.0, 120.0, 200.0, 323.0, 500.0, 690.0)
_GRID_FAR = (1e3, 2e3, 4e3, 8e3, 16e3, 32e3, 64e3, 125e3, 250e3, 500e3, 1e6)
_SHARP, _PEAKS, _GOLDEN = 8.0, 4, 0.5 * (math.sqrt(5.0) - 1.0)
_WIDTHS = (-14.0, -8.0, -5.0, -3.0, -1.5, 0.0, 1.5, 3.0, 5.0, 8.0, 14.0)


@dataclass(frozen=True)
class Scan:
    """The logarithms of both weights at the probes of a piece (M, ...), p dx/dt and q dx/dt, -inf outside.

    log_power: that of p^a q^(1-a), for an order so high that its peaks are narrower than those of p and q.
    """

    t: Tensor
    log_p: Tensor
    log_q: Tensor
    log_slope: Tensor
    log_power: Tensor | None = None


class Integrand:
    """The cells of a pair of densities, as the core's sums read them."""

    def __init__(self, sums: tuple[Sum[Any], ...], p: Measurable, q: Measurable) -> None:
        self.p = p if isinstance(p, Density) else doubled(p)
        self.q = self.p if q is p else (q if isinstance(q, Density) else doubled(q))
        self.sums = sums
        self.growth = tuple(growth_of(total) for total in sums)
        self.raw_log_q = any(growth.cross for growth in self.growth)
        self.logarithmic = any(isinstance(s, LogAffinity) for s in sums)
        left, right = support_of(self.p), support_of(self.q)
        assert left is not None
        assert right is not None
        self.supports: tuple[Support, Support] = (left, right)
        self.sides = (self.p, self.q)
        with torch.no_grad():
            self.plain = tuple(map(log_density, self.sides))
        self.harmless = tuple(place_of(_middle(s), s) for s in self.supports)
        self.sharp = tuple(map(is_sharp, self.sides))
        self.far = all(map(is_far, self.sides))
        self.batch = batch_of(p, q)
        self.marks = (self._marks(self.p), self._marks(self.q))
        # a side that has underflowed leaves the other one's edge constant, if that is finite
        generated = [s.generator for s in sums if isinstance(s, GeneratorSum)]
        self.p_fades = all(f.at_p_zero < math.inf for f in generated)
        self.q_fades = all(f.at_q_zero < math.inf for f in generated)
        self.undefined = torch.zeros(self.batch, dtype=torch.bool)

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

    def pieces(self, more: tuple[Tensor, ...] = ()) -> list[Piece]:
        """Cut at the ends of both supports, at kinks, and at `more`; the cuts keep their gradients."""
        lows: list[Cut] = []
        highs: list[Cut] = []
        middle: list[Cut] = [Cut(x, 2) for x in more]
        for owner, d, support in ((1, self.q, self.supports[1]), (0, self.p, self.supports[0])):
            for end in ends(d, support):
                if end is support.low:
                    lows.append(Cut(end, owner))
                elif end is support.high:
                    highs.insert(0, Cut(end, owner))
                else:
                    middle.append(Cut(end, 2))
            middle += [Cut(x, 2) for x in kinks(d)]
        centers, widths = self.marks[0]
        return cut(self.supports, [*lows, *middle], highs, self.batch, centers[0], widths[0])

    def reach(self, piece: Piece) -> tuple[Tensor, Tensor]:
        sharp = all(s or not bool(inside.any()) for s, inside in zip(self.sharp, piece.inside, strict=True))
        start, stop = piece.reach(sharp, self.far)
        return start.detach(), stop.detach()

    @torch.no_grad()
    def scan(self, piece: Piece) -> Scan:
        """A look at the whole piece."""
        start, stop = self.reach(piece)
        size = float(torch.maximum(start.abs(), stop.abs()).max())
        grid = [g for g in (*_GRID, *_GRID_FAR) if g <= size]
        marks = [torch.tensor(s * g).double().expand(self.batch) for g in grid for s in ((1, -1) if g else (1,))]
        for centers, widths in self.marks:
            for k in _WIDTHS:
                marks += list(piece.position(centers + k * widths).unbind(0))
        inner = torch.stack([start.expand(self.batch), stop.expand(self.batch), *marks])
        t = torch.minimum(torch.maximum(inner, start), stop).sort(0).values
        logs = self.logs(piece, t)
        for growth, power in zip(self.growth, self.sizes(logs), strict=True):
            if power is not None and growth.order is not None and abs(growth.order) > _SHARP:
                t = torch.cat([t, self._around_peaks(piece, t, power, growth)]).sort(0).values
                logs = self.logs(piece, t)
                return Scan(t, *logs, log_size(growth, *logs))
        return Scan(t, *logs)

    def _around_peaks(self, piece: Piece, t: Tensor, size: Tensor, growth: Growth) -> Tensor:
        """Places ever nearer to the peaks of p^a q^(1-a), which for a large a are narrow: more t to look at."""
        outside = torch.full_like(size[:1], -math.inf)
        size = size.nan_to_num(-math.inf)
        peak = (size > torch.cat([outside, size[:-1]])) & (size >= torch.cat([size[1:], outside]))
        at = torch.where(peak, size, -math.inf).topk(min(_PEAKS, len(t)), dim=0).indices
        later = torch.where(t[1:] > t[:-1], t[1:], t[-1:])
        later = torch.cat([later.flip(0).cummin(0).values.flip(0), t[-1:]])  # the next place that is not the same
        low, high = t.gather(0, (at - 1).clamp(min=0)), later.gather(0, at)
        width = high - low

        def height(t: Tensor) -> Tensor:
            found = log_size(growth, *self.logs(piece, t))
            assert found is not None
            return found.nan_to_num(-math.inf)

        for _ in range(60):  # the golden section
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            rising = height(left) < height(right)
            low, high = torch.where(rising, left, low), torch.where(rising, high, right)
        top = 0.5 * (low + high)
        near = torch.cat([top, *(top + s * 0.5**k * width for k in range(44) for s in (-1.0, 1.0))])
        return torch.minimum(torch.maximum(near, t[:1]), t[-1:])

    def logs(self, piece: Piece, t: Tensor, both: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """log p and log q per unit of t, -inf outside of the support, and log dx/dt.

        `both`: for each side, t again, with a harmless value where that side is not wanted.
        """
        found = []
        at, log_slope = piece.points(t)
        slope = log_slope
        read = self.plain if both is None else tuple(map(log_density, self.sides))
        for side in (0, 1):
            if both is not None:
                at, log_slope = piece.points(both[side])
            inside = piece.inside[side]
            if not bool(inside.any()):
                found.append(torch.full_like(at.x, -math.inf))
                continue
            place = piece.place(side, self.supports[side], at)
            if not bool(inside.all()):
                place = Place(*(torch.where(inside, v, w) for v, w in zip(place, self.harmless[side], strict=True)))
            value = read[side](place) + log_slope
            if self.sharp[side]:
                value = torch.where(value < _FLOOR, _FLOOR, value)
            wrong = torch.isnan(value)
            if bool(wrong.any()):
                self._check(side, wrong & inside)
                value = torch.where(wrong, _FLOOR, value)
            found.append(value if bool(inside.all()) else torch.where(inside, value, -math.inf))
        return found[0], found[1], slope

    def _check(self, side: int, wrong: Tensor) -> None:
        """NaN parameters make their row NaN; a function that returns NaN is refused."""
        if bool(wrong.any()) and isinstance(self.sides[side], Density):
            raise ToleranceError(
                f"quadrature: log_prob of {'pq'[side]} returns NaN inside of its support. Write a Density whose "
                "log_prob is a number, or -inf, everywhere between the ends of support=(low, high)."
            )
        self.undefined |= wrong.flatten(0, wrong.dim() - len(self.batch) - 1).any(0) if wrong.dim() else wrong

    def sizes(self, scan_or_logs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor | None]:
        """The logarithm of what each sum adds beyond a multiple of p + q; None where it adds nothing more."""
        log_p, log_q, log_slope = scan_or_logs
        return [log_size(g, log_p, log_q, log_slope) for g in self.growth]

    def dropped(self, logs: tuple[Tensor, Tensor, Tensor], shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cells in which p, and in which q, counts for nothing and sends back nothing."""
        log_p, log_q, log_slope = logs
        d = torch.where(torch.isinf(log_p) | torch.isinf(log_q), 0.0, log_q - log_p)
        heavy = torch.maximum(log_p, log_q) + torch.log1p(d.abs())
        if self.raw_log_q:
            heavy = log_p + torch.log1p(torch.where(torch.isinf(log_q), 0.0, log_q - log_slope).abs())
        for growth, size in zip(self.growth, self.sizes(logs), strict=True):
            if growth.order is not None and size is not None and shift is not None:
                heavy = torch.maximum(heavy, size - shift)
        powers = any(g.order is not None for g in self.growth)
        lost = ~(heavy > NEGLIGIBLE)
        if not powers:  # the weights themselves underflow, so that nothing is left to multiply
            lost |= torch.maximum(log_p, log_q) < NEGLIGIBLE
        p_gone = lost | ((log_p < NEGLIGIBLE) & self.p_fades & (not powers))
        q_gone = lost | ((log_q < NEGLIGIBLE) & self.q_fades & (not powers))
        return p_gone, q_gone

    @torch.no_grad()
    def values(self, piece: Piece, t: Tensor, shift: Tensor | None) -> list[Tensor]:
        """Every sum's integrand (a LogAffinity: e^-shift times it), then p and q themselves."""
        return self._terms(self.logs(piece, t), shift)[0]

    def differentiable(self, piece: Piece, t: Tensor, shift: Tensor | None, scan: Scan, off: Tensor) -> list[Tensor]:
        """The same with gradients, and 0 without gradient in the rows that are `off`."""
        with torch.no_grad():
            logs = self.logs(piece, t)
            gone = self.dropped(logs, shift)
            gone = (gone[0] | off, gone[1] | off)
            _, overflown = self._terms(_without(logs, gone), shift)
            none = [g | ~inside for g, inside in zip(gone, piece.inside, strict=True)]
            safe = [
                torch.where(n, scan.t.gather(0, log.argmax(0, keepdim=True)), t)
                for n, log in zip(none, (scan.log_p, scan.log_q), strict=True)
            ]
        logs = self.logs(piece, t, (safe[0], safe[1]))
        return self._terms(_without(logs, gone), shift, overflown)[0]

    def _terms(
        self, logs: tuple[Tensor, Tensor, Tensor], shift: Tensor | None, overflown: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        log_p, log_q, log_slope = logs
        p, q = torch.exp(log_p), torch.exp(log_q)
        values = []
        bad = torch.zeros((), dtype=torch.bool)
        for total in self.sums:
            if isinstance(total, LogAffinity):
                assert shift is not None
                nowhere = torch.isinf(log_p) | torch.isinf(log_q)
                both = [torch.where(nowhere, 0.0, log) for log in (log_p, log_q)]
                value = total.order * both[0] + (1.0 - total.order) * both[1] - shift
                value = torch.where(nowhere, 0.0, torch.exp(value))
            else:
                assert isinstance(total, GeneratorSum)
                left, right = log_p, log_q
                if self.raw_log_q:
                    right = torch.where(log_q == -math.inf, -math.inf, log_q - log_slope)
                if self.logarithmic and overflown is not None:
                    left, right = (torch.where(overflown, -math.inf, x) for x in (left, right))
                value = total.terms(Pair(Weights(p, left), Weights(q, right))).value
                if self.logarithmic and overflown is None:  # a power sum far away reads the logarithm instead
                    bad = bad | ~torch.isfinite(value)
                    value = torch.where(torch.isfinite(value), value, 0.0)
            values.append(value)
        return [*values, p, q], bad


def _without(logs: tuple[Tensor, Tensor, Tensor], gone: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms without the cells that are gone."""
    log_p, log_q = (torch.where(g, -math.inf, log) for g, log in zip(gone, logs[:2], strict=True))
    return log_p, log_q, logs[2]


def trusted(integrand: Integrand, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Where neither logarithm has overflowed, nor the weights underflowed where sums need these."""
    good = (log_p > _TRUSTED) & (log_q > _TRUSTED)
    if any(growth.order is not None for growth in integrand.growth):
        return good
    return good & (torch.maximum(log_p, log_q) > NEGLIGIBLE)


def _middle(s: Support) -> Tensor:
    """A point inside of a support."""
    low, high = s.low.detach(), s.high.detach()
    left, right = torch.isfinite(low), torch.isfinite(high)
    middle = 0.5 * (torch.where(left, low, 0.0) + torch.where(right, high, 0.0))
    return torch.where(left & right, middle, torch.where(left, low + 1.0, torch.where(right, high - 1.0, 0.0)))


def significance(integrand: Integrand, scan: Scan) -> Tensor:
    """How far each probe is above the level where nothing counts, (M, ...); <= 0: it does not count."""
    level = torch.maximum(scan.log_p, scan.log_q)
    for growth, size in zip(integrand.growth, integrand.sizes((scan.log_p, scan.log_q, scan.log_slope)), strict=True):
        if size is not None:
            top = size.amax(0, keepdim=True) if growth.order is not None else 0.0
            level = torch.maximum(level, size - top)
    return level + _FADED
