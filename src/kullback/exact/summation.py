"""Sums over counts: any divergence of two distributions on the integers, from their log-masses.

Finite supports are summed whole. Infinite ones are summed over a range outside of which what is left is proven to be
below 1e-14 of the sum: from 0, or, for long sums of log-concave masses, from where the mass begins.

**The bound above.** Every family here has successive ratios d(x+1)/d(x) <= ρ for all x > N: λ/(N+2) for Poisson, and
c max(1, (N+1+r)/(N+2)) for the negative binomial with success probability c and count r (Geometric: r = 1), since
(x+r)/(x+1) is monotone with limit 1. It also has a bounded surprise: -log d(x) <= a + b x + x² for x >= 1, with

    Poisson             a = λ,                              b = |log λ|        (log x! <= x²)
    negative binomial   a = -r log(1-c) + max(0, -log r),   b = -log c + 1     (binomial coefficient >= min(1, r/x))

The polynomial grows by at most ((x+1)/x)² per step, so with σ = ρ ((N+2)/(N+1))² < 1

    Σ_(x>N) d(x) (a + b x + x²) <= d(N+1) (a + b (N+1) + (N+1)²) / (1 - σ).

A canonical KL term is at most q + p·surprise of q; Jensen-Shannon, total variation, Hellinger and α in (0, 1) terms
are at most a constant times p + q. For orders outside [0, 1], p^a q^(1-a) has ratio at most ρ_p^a · (smallest ratio of
q)^(1-a), and the value is +inf where that limit is above 1. Mixtures add the bounds of their components.

**The bound below.** Poisson and the negative binomial with r >= 1 have ratios that fall in x, so that below n, left of
the mode, d(x) <= d(n-1) ρ^(n-1-x) with ρ = d(n-2)/d(n-1) < 1: their mass there is at most d(n-1)/(1 - ρ), and its
surprise at most a + b n + n².
"""

import math
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Geometric,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    Poisson,
)

from kullback._errors import NoExactMethod, ToleranceError
from kullback.core.readings import Weights
from kullback.core.reduction import LogAffinity, Pair, Sum

from .growth import growth_of
from .registry import doubles, given_as_probs, probabilities
from .shapes import batch_of, together
from .support import support_of

_TAIL = 1e-14
_MAX_CELLS = 1 << 25
_MAX_ROUNDS = 8
_LONG = 4096  # terms from which on a sum starts where the mass does
_BLOCK = 1 << 15


def log_mass(d: Any, x: Tensor) -> Tensor:
    """log P(X = x) in float64 for integers x (..., n) against the batch shape (..., 1) of d."""
    if isinstance(d, MixtureSameFamily):
        weights = torch.log_softmax(d.mixture_distribution.logits.double(), -1).unsqueeze(-2)
        terms = log_mass(d.component_distribution, x).movedim(-1, -2) + weights
        nothing = (terms == -math.inf).all(-1)
        return torch.where(nothing, -math.inf, torch.logsumexp(torch.where(nothing.unsqueeze(-1), 0.0, terms), -1))
    if isinstance(d, Poisson):
        rate = doubles(d, "rate")[0].unsqueeze(-1)
        return _times_log(x, rate) - rate - torch.lgamma(x + 1.0)
    if isinstance(d, Binomial | Bernoulli):
        total = doubles(d, "total_count")[0].unsqueeze(-1) if isinstance(d, Binomial) else torch.ones_like(x[..., :1])
        inside = x <= total
        rest = torch.where(inside, total - x, 0.0)
        choose = torch.lgamma(total + 1.0) - torch.lgamma(x + 1.0) - torch.lgamma(rest + 1.0)
        success, failure = _log_terms(d)
        return torch.where(inside, choose + success(x) + failure(rest), -math.inf)
    if isinstance(d, NegativeBinomial):
        total = doubles(d, "total_count")[0].unsqueeze(-1)
        none = total == 0
        r = torch.where(none, 1.0, total)
        success, failure = _log_terms(d)
        choose = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1.0)
        return torch.where(none, torch.where(x == 0, 0.0, -math.inf), choose + success(x) + failure(total))
    if isinstance(d, Geometric):
        success, failure = _log_terms(d)
        trials: Tensor = failure(x) + success(torch.ones_like(x))
        return trials
    if isinstance(d, Categorical):
        probs = given_as_probs(d)
        columns = doubles(d, "probs" if probs else "logits")[0]
        log_p = _log(columns) if probs else torch.log_softmax(columns, -1)
        inside = x < columns.shape[-1]
        at = torch.where(inside, x, 0.0).long().expand(*columns.shape[:-1], x.shape[-1])
        return torch.where(inside, log_p.gather(-1, at), -math.inf)
    value: Tensor = d.log_prob(x.movedim(-1, 0).reshape(-1, *(1,) * len(d.batch_shape))).movedim(0, -1)
    return value


def _log(w: Tensor) -> Tensor:
    zero = w == 0
    return torch.where(zero, -math.inf, torch.log(torch.where(zero, 1.0, w)))


def _times_log(x: Tensor, w: Tensor) -> Tensor:
    """x log w with 0 log 0 = 0."""
    zero = w == 0
    return torch.where(zero, torch.where(x == 0, 0.0, -math.inf), x * torch.log(torch.where(zero, 1.0, w)))


def _log_terms(d: Any) -> tuple[Any, Any]:
    """x ↦ x log probs and x ↦ x log(1 - probs)."""
    if given_as_probs(d):
        probs, rest = (w.unsqueeze(-1) for w in probabilities(d))
        return (lambda x: _times_log(x, probs)), (lambda x: _times_log(x, rest))
    logits = doubles(d, "logits")[0].unsqueeze(-1)
    log_sigmoid = torch.nn.functional.logsigmoid
    return (lambda x: x * log_sigmoid(logits)), (lambda x: x * log_sigmoid(-logits))


class Tail(NamedTuple):
    """What is known of d above N, per row: weight of each component, ratios, surprise a + b x + x², log d(N+1)."""

    log_next: Tensor
    largest: Tensor
    smallest: Tensor
    limit: Tensor
    a: Tensor
    b: Tensor


def _tail(d: Distribution, n: int) -> Tail:
    following = torch.tensor([n + 1.0], dtype=torch.float64)
    if isinstance(d, Poisson):
        (rate,) = doubles(d, "rate")
        zero, log = torch.zeros_like(rate), _log(rate).abs()
        return Tail(log_mass(d, following)[..., 0], rate / (n + 2), zero, zero, rate, log)
    if isinstance(d, NegativeBinomial | Geometric):
        success, failure = probabilities(d) if isinstance(d, NegativeBinomial) else reversed(probabilities(d))
        r = doubles(d, "total_count")[0] if isinstance(d, NegativeBinomial) else torch.ones_like(success)
        change = (n + 1 + r) / (n + 2)
        a = torch.where(r > 0, -r * _log(failure) + (-_log(r)).clamp(min=0.0), math.inf)
        return Tail(
            log_mass(d, following)[..., 0],
            success * change.clamp(min=1.0),
            success * change.clamp(max=1.0),
            success,
            a,
            1.0 - _log(success),
        )
    if isinstance(d, MixtureSameFamily):
        raise AssertionError("mixtures are read by their components")
    zero = torch.zeros(d.batch_shape, dtype=torch.float64)  # a finite support, and n is above it
    return Tail(zero - math.inf, zero, zero, zero, zero + math.inf, zero)


def _weighted(d: Distribution, n: int, a: Tensor, b: Tensor) -> Tensor:
    """The bound on Σ_(x>n) d(x) (a + b x + x²)."""
    if isinstance(d, MixtureSameFamily):
        parts = _weighted(d.component_distribution, n, a.unsqueeze(-1), b.unsqueeze(-1))
        return (torch.softmax(d.mixture_distribution.logits.double(), -1) * parts).sum(-1)
    tail = _tail(d, n)
    sigma = tail.largest * ((n + 2) / (n + 1)) ** 2
    size = torch.exp(tail.log_next) * (a + b * (n + 1) + (n + 1.0) ** 2) / (1.0 - sigma)
    return torch.where(tail.log_next == -math.inf, 0.0, torch.where(sigma < 1.0, size, math.inf))


def _surprise(d: Distribution, n: int) -> tuple[Tensor, Tensor]:
    if isinstance(d, MixtureSameFamily):
        log_weights, best = torch.log_softmax(d.mixture_distribution.logits.double(), -1).max(-1)
        tail = _tail(d.component_distribution, n)
        shape = d.component_distribution.batch_shape
        a, b = (s.expand(shape).gather(-1, best.expand(shape[:-1]).unsqueeze(-1)).squeeze(-1) for s in (tail.a, tail.b))
        return a - log_weights, b
    tail = _tail(d, n)
    return tail.a, tail.b


@torch.no_grad()
def bound_above(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, n: int) -> tuple[Tensor, Tensor]:
    """A bound on what lies above n, and the rows whose terms do not fall at all."""
    one = torch.ones((), dtype=torch.float64)
    growths = [growth_of(total) for total in sums]
    tail, order = growths[0], growths[-1].order
    above = tail.multiple * (_weighted(p, n, one, 0 * one) + _weighted(q, n, one, 0 * one))
    never = torch.zeros_like(above, dtype=torch.bool)
    if tail.p_log or tail.cross:
        above = above + _weighted(p, n, *_surprise(q, n))
    if tail.q_log:
        above = above + _weighted(q, n, *_surprise(p, n))
    if order is not None:
        if isinstance(p, MixtureSameFamily) or isinstance(q, MixtureSameFamily):
            raise NoExactMethod(f"order {order:g} of mixtures over unbounded counts has no proven tail bound.")
        left, right, a = (_tail(p, n), _tail(q, n), order) if order > 1.0 else (_tail(q, n), _tail(p, n), 1.0 - order)
        if isinstance(p, Poisson) and isinstance(q, Poisson):
            # (λ^a μ^(1-a))/(x+1) exactly
            ratio = (left.largest * (n + 2)) ** a * (right.a ** (1.0 - a)) / (n + 2)
            limit = torch.zeros_like(ratio)
        else:
            ratio, limit = left.largest**a * right.smallest ** (1.0 - a), left.limit**a * right.limit ** (1.0 - a)
        log_next = a * left.log_next + (1.0 - a) * right.log_next
        gone = left.log_next == -math.inf
        rest = torch.where(ratio < 1.0, torch.exp(log_next) / (1.0 - ratio), math.inf)
        scale = max(abs(total.power.scale) for total in sums if total.power is not None)
        above = above + torch.where(gone, 0.0, scale * rest)
        never = ~gone & ((limit > 1.0) | (right.log_next == -math.inf) | ((right.smallest == 0) & (left.limit > 0)))
    return above, never


@torch.no_grad()
def bound_below(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, n: int) -> Tensor:
    """A bound on what lies below n, for two families whose masses are log-concave: d(x) <= d(n-1) ρ^(n-1-x)."""
    tail = growth_of(sums[0])
    ends = torch.tensor([n - 2.0, n - 1.0], dtype=torch.float64)
    masses = []
    for d in (p, q):
        log = log_mass(d, ends)
        ratio = torch.exp(log[..., 0] - log[..., 1])
        masses.append(torch.where(ratio < 1.0, torch.exp(log[..., 1]) / (1.0 - ratio), math.inf))
    below = tail.multiple * (masses[0] + masses[1])
    if tail.p_log or tail.cross:
        a, b = _surprise(q, n)
        below = below + masses[0] * (a + b * n + float(n) ** 2)
    if tail.q_log:
        a, b = _surprise(p, n)
        below = below + masses[1] * (a + b * n + float(n) ** 2)
    return below


def _is_concave(d: Distribution) -> bool:
    """Whether successive ratios d(x+1)/d(x) never rise."""
    return isinstance(d, Poisson) or (isinstance(d, NegativeBinomial) and bool((d.total_count >= 1).all()))


def add_up(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution) -> list[Tensor]:
    """The value of each sum for two distributions on the integers from 0, (...) in float64.

    Raises: NoExactMethod for an unbounded support without a proven tail bound, or a generator that does not say how it
    grows; ToleranceError for too long a sum.
    """
    known = 0
    bounded = True
    for d in (p, q):
        support = support_of(d)
        assert support is not None
        finite = torch.isfinite(support.high)
        known = max(known, int(support.high[finite].max()) if bool(finite.any()) else 0)
        if not bool(finite.all()):
            bounded = False
            family = d.component_distribution if isinstance(d, MixtureSameFamily) else d
            if not isinstance(family, Poisson | NegativeBinomial | Geometric):
                raise NoExactMethod(
                    f"{type(d).__name__} has no end and no proven bound on its tail here. Write "
                    "estimate.kl(p, q, method=MonteCarlo(n), generator=g)."
                )
    if bounded:
        return _rows(sums, p, q, 0, known)
    outer = None if len(sums) > 1 else growth_of(sums[0]).order
    whole = sums if outer is None else (*sums, LogAffinity(outer))
    values = _unbounded(whole, p, q, known)
    if outer is None:
        return values
    assert sums[0].power is not None
    return [from_logarithm(sums[0].power.scale, *values)]


def from_logarithm(scale: float, near: Tensor, log_sum: Tensor) -> Tensor:
    """scale (S - 1): from log S where S is far from 1, and the canonical sum has overflowed or might."""
    far = (log_sum.abs() > 0.5) & torch.isfinite(log_sum)
    return torch.where(far, scale * torch.expm1(torch.where(far, log_sum, 0.0)), near)


def _unbounded(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, known: int) -> list[Tensor]:
    """The sum over a range outside of which what is left out is proven to be below 1e-14 of it."""
    batch = batch_of(p, q)
    target = torch.full(batch, _TAIL * 1e-2, dtype=torch.float64)
    for _ in range(_MAX_ROUNDS):
        stop, never = _stop(sums, p, q, max(64, known), target, batch)
        start = _start(sums, p, q, stop, target)
        with torch.no_grad():
            values = _rows(sums, p, q, start, stop)
            left_out = bound_above(sums, p, q, stop)[0] + (bound_below(sums, p, q, start) if start else 0.0)
            allowed = torch.full(batch, math.inf, dtype=torch.float64)
            for total, value in zip(sums, values, strict=True):
                scale = torch.exp(value) if isinstance(total, LogAffinity) else value.abs()
                settled = torch.isinf(value) | value.isnan() | never
                allowed = torch.minimum(allowed, torch.where(settled, math.inf, _TAIL * scale))
            if bool((left_out <= allowed).logical_or(allowed.isinf()).all()):
                break
            target = torch.minimum(0.5 * torch.where(allowed > 0, allowed, 1e-300), target)
    else:
        raise ToleranceError("summation: the tail cannot be bounded to 1e-14 of the value.")
    wanted = torch.is_grad_enabled() and any(
        x.requires_grad for x in (log_mass(d, torch.zeros(1).double()) for d in (p, q))
    )
    if wanted:
        values = _rows(sums, p, q, start, stop)
    return [torch.where(never, math.inf, value) for value in values]


def _stop(
    sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, n: int, target: Tensor, batch: torch.Size
) -> tuple[int, Tensor]:
    """About the smallest n above which at most `target` lies, and the rows in which terms never fall."""
    low = n

    def enough(n: int) -> tuple[bool, Tensor]:
        above, never = bound_above(sums, p, q, n)
        return bool(((above <= target) | never | above.isnan()).all()), never

    ready, never = enough(n)
    while not ready:
        low, n = n, 2 * n
        if n * max(batch.numel(), 1) > _MAX_CELLS:
            raise ToleranceError(f"summation: {n} terms a row are not enough to bound the tail, and more do not fit.")
        ready, never = enough(n)
    while n - low > max(16, n // 16):
        middle = (low + n) // 2
        ready, some = enough(middle)
        low, n, never = (low, middle, some) if ready else (middle, n, never)
    return n, never


def _start(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, stop: int, target: Tensor) -> int:
    """About the largest n below which at most `target` lies."""
    if stop < _LONG or not (_is_concave(p) and _is_concave(q)) or growth_of(sums[-1]).order is not None:
        return 0
    low, high = 2, stop
    while high - low > max(16, high // 64):
        middle = (low + high) // 2
        if bool((bound_below(sums, p, q, middle) <= target).all()):
            low = middle
        else:
            high = middle
    return low if bool((bound_below(sums, p, q, low) <= target).all()) else 0


def _rows(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, start: int, stop: int) -> list[Tensor]:
    """The sums over start <= x <= stop: at once where a gradient is asked for, else in blocks that stay in cache."""
    if torch.is_grad_enabled():
        x = torch.arange(start, stop + 1, dtype=torch.float64)
        return of_logs(sums, *together(log_mass(p, x), log_mass(q, x)))
    step = max(_BLOCK // max(batch_of(p, q).numel(), 1), 64)
    states: list[Any] | None = None
    for first in range(start, stop + 1, step):
        x = torch.arange(first, min(first + step, stop + 1), dtype=torch.float64)
        pair = _pair(*together(log_mass(p, x), log_mass(q, x)))
        new = [total.of(pair) for total in sums]
        states = new if states is None else [t.merge(a, b) for t, a, b in zip(sums, states, new, strict=True)]
    assert states is not None
    return [total.value(state) for total, state in zip(sums, states, strict=True)]


def _pair(log_p: Tensor, log_q: Tensor) -> Pair:
    return Pair(Weights(torch.exp(log_p), log_p), Weights(torch.exp(log_q), log_q))


def of_logs(sums: tuple[Sum[Any], ...], log_p: Tensor, log_q: Tensor) -> list[Tensor]:
    """Each sum over all outcomes (..., n), from their log-masses."""
    with torch.no_grad():  # a row that is infinite sends back no gradient
        pair = _pair(log_p, log_q)
        infinite = torch.stack([torch.isinf(total.rows(pair)) for total in sums]).any(0)
    # nor does a term where both masses have underflowed
    cut = infinite.unsqueeze(-1) | ((pair.p.w == 0) & (pair.q.w == 0))
    pair = _pair(torch.where(cut, -math.inf, log_p), torch.where(cut, -math.inf, log_q))
    return [torch.where(infinite, math.inf, total.rows(pair)) for total in sums]


def over_outcomes(sums: tuple[Sum[Any], ...], p: Multinomial, q: Multinomial) -> list[Tensor]:
    """Each sum over the outcomes of two Multinomials of as many columns: those of both totals, if these differ."""
    found = []
    totals = sorted({p.total_count, q.total_count})
    outcomes = torch.cat([_compositions(n, p.event_shape[0]) for n in totals])
    for d in (p, q):
        if given_as_probs(d._categorical):
            log_probs = _log(doubles(d._categorical, "probs")[0])
        else:
            log_probs = torch.log_softmax(doubles(d._categorical, "logits")[0], -1)
        none = torch.isinf(log_probs).unsqueeze(-2)
        parts = torch.where(outcomes == 0, 0.0, outcomes * torch.where(none, 0.0, log_probs.unsqueeze(-2)))
        log = math.lgamma(d.total_count + 1.0) - torch.lgamma(outcomes + 1.0).sum(-1) + parts.sum(-1)
        outside = (outcomes.sum(-1) != d.total_count) | (none & (outcomes > 0)).any(-1)
        found.append(torch.where(outside, -math.inf, log))
    return of_logs(sums, *together(*found))


def _compositions(n: int, columns: int) -> Tensor:
    """All vectors of counts that add up to n, (C(n+columns-1, columns-1), columns)."""
    bars = list(combinations(range(n + columns - 1), columns - 1))
    edges = torch.tensor(bars, dtype=torch.float64).reshape(len(bars), columns - 1)
    low, high = torch.full((len(bars), 1), -1.0), torch.full((len(bars), 1), n + columns - 1.0)
    return torch.diff(torch.cat([low, edges, high], -1), dim=-1) - 1.0
