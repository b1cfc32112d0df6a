"""Sums over counts: any divergence of two distributions on the integers, from their log-masses.

Finite supports are summed whole. Infinite ones are summed to N, doubled until a proven bound on what lies above N is
below 1e-14 of the sum.

**The bound.** Every family here has successive ratios d(x+1)/d(x) <= ρ for all x > N: λ/(N+2) for Poisson, and
c max(1, (N+1+r)/(N+2)) for the negative binomial with success probability c and count r (Geometric: r = 1), since
(x+r)/(x+1) is monotone with limit 1. It also has a bounded surprise: -log d(x) <= a + b x + x² for x >= 1, with

    Poisson             a = λ,                              b = |log λ|        (log x! <= x²)
    negative binomial   a = -r log(1-c) + max(0, -log r),   b = -log c + 1     (binomial coefficient >= min(1, r/x))

The polynomial grows by at most ((x+1)/x)² per step, so with σ = ρ ((N+2)/(N+1))² < 1

    Σ_(x>N) d(x) (a + b x + x²) <= d(N+1) (a + b (N+1) + (N+1)²) / (1 - σ).

A canonical KL term is at most q + p·surprise of q; Jensen-Shannon, total variation, Hellinger and α in (0, 1) terms
are at most a constant times p + q. For orders outside [0, 1], p^a q^(1-a) has ratio at most ρ_p^a · (smallest ratio of
q)^(1-a), and the value is +inf where that limit is above 1. Mixtures add the bounds of their components.
"""

import math
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
    NegativeBinomial,
    Poisson,
)

from kullback._errors import NoExactMethod, ToleranceError
from kullback.core import generators
from kullback.core.readings import Weights
from kullback.core.reduction import GeneratorSum, LogAffinity, Pair, Sum

from .registry import doubles, given_as_probs, probabilities
from .shapes import batch_of, together
from .support import support_of

_TAIL = 1e-14
_MAX_CELLS = 1 << 25


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
def _bound(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, n: int) -> tuple[Tensor, Tensor]:
    """A bound on what lies above n, and the rows whose terms do not fall at all."""
    one = torch.ones((), dtype=torch.float64)
    tail, order = tail_of(sums)
    above = tail.multiple * (_weighted(p, n, one, 0 * one) + _weighted(q, n, one, 0 * one))
    never = torch.zeros_like(above, dtype=torch.bool)
    if tail.p_log:
        above = above + _weighted(p, n, *_surprise(q, n))
    if tail.q_log:
        above = above + _weighted(q, n, *_surprise(p, n))
    if order is not None and not 0.0 <= order <= 1.0:
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
        above = above + torch.where(gone, 0.0, rest)
        never = ~gone & ((limit > 1.0) | (right.log_next == -math.inf) | ((right.smallest == 0) & (left.limit > 0)))
    return above, never


def tail_of(sums: tuple[Sum[Any], ...]) -> tuple[generators.Tail, float | None]:
    """How the first sum's terms grow, and the order a where p^a q^(1-a) is among them."""
    orders = {total.power.order for total in sums if total.power is not None}
    first = sums[0]
    tail = first.generator.tail if isinstance(first, GeneratorSum) else generators.Tail()
    if tail is None:
        raise NoExactMethod(
            f"nothing is known of how {first} grows where q/p or p/q does, so that an infinite sum or integral of it "
            "has no error bound. Give its Generator a tail=Tail(...)."
        )
    return tail, orders.pop() if orders else None


def add_up(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution) -> list[Tensor]:
    """The value of each sum for two distributions on the integers from 0, (...) in float64.

    Raises: NoExactMethod for an unbounded support without a proven tail bound, ToleranceError for too long a sum.
    """
    batch = batch_of(p, q)
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
    n = known if bounded else max(64, known)
    while True:
        if (n + 1) * max(batch.numel(), 1) > _MAX_CELLS:
            raise ToleranceError(f"summation: {n} terms a row are not enough to bound the tail, and more do not fit.")
        x = torch.arange(n + 1, dtype=torch.float64)
        with torch.no_grad():
            if bounded:
                never = torch.zeros(batch, dtype=torch.bool)
                break
            above, never = _bound(sums, p, q, n)
            values = _rows(sums, p, q, x)
            ready = torch.ones(batch, dtype=torch.bool)
            for total, value in zip(sums, values, strict=True):
                scale = torch.exp(value) if isinstance(total, LogAffinity) else value.abs()
                ready &= (above <= _TAIL * scale) | (value == math.inf) | never | value.isnan()
            if bool(ready.all()):
                break
        n *= 2
    return [torch.where(never, math.inf, value) for value in _rows(sums, p, q, x)]


def _rows(sums: tuple[Sum[Any], ...], p: Distribution, q: Distribution, x: Tensor) -> list[Tensor]:
    log_p, log_q = together(log_mass(p, x), log_mass(q, x))
    with torch.no_grad():  # a row that is infinite sends back no gradient
        pair = Pair(Weights(torch.exp(log_p), log_p), Weights(torch.exp(log_q), log_q))
        infinite = torch.stack([torch.isinf(total.rows(pair)) for total in sums]).any(0)
    # nor does a term where both masses have underflowed
    cut = infinite.unsqueeze(-1) | ((pair.p.w == 0) & (pair.q.w == 0))
    log_p, log_q = torch.where(cut, -math.inf, log_p), torch.where(cut, -math.inf, log_q)
    pair = Pair(Weights(torch.exp(log_p), log_p), Weights(torch.exp(log_q), log_q))
    return [torch.where(infinite, math.inf, total.rows(pair)) for total in sums]
