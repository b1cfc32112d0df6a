"""Monte Carlo: KL(p‖q) as a mean over draws, from log-densities at the draws.

With w = p/r and v = q/r at draws from r (r = p: w = 1; r = q: v = 1), and s = log(q/p):

    K1         w·(-s)                    unbiased; some terms are negative
    K2         w·s²/2                    low variance, biased: right to second order in s
    K3         w·(e^s - 1 - s)           unbiased; no term is negative
    Regressed  w·(-s) - β₁(w-1) - β₂(v-1)   β by least squares: the mean of v-1 and w-1 is known to be 0

K1 is Regressed with β = 0, and K3 is K1 with the control v-w at coefficient 1. The mean of v is 1 only if r has mass
wherever q has, and is seen to be 1 only if the draws reach where q/p is large: with draws from p, K3 and Regressed read
too low where q has mass and p none, or much heavier tails than p. K1 does not ask for it.
Source: Schulman 2020, "Approximating KL divergence"; Owen 2013, "Monte Carlo theory, methods and examples", 8.9 and 9.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback._errors import FormError
from kullback.core.generators import excess
from kullback.forms.empirical import LogRatios

from .draws import draw, log_density, one_distribution, source_of
from .result import Estimate
from .tails import HEAVY, pareto_shape


@dataclass(frozen=True)
class K1:
    """The mean of log(p/q), weighted by p/r when the draws come from r. Unbiased.

    Args: self_normalised: divide the weights by their mean, for less variance and a bias of order 1/n.
    Source: Schulman 2020 (k1).

    >>> from kullback import LogRatios, estimate
    >>> ratios = LogRatios([-1.0, -1.0, -2.0], [-1.1, -0.7, -2.4], drawn_from="p")   # log(p/q) = 0.1, -0.3, 0.4
    >>> round(estimate.kl(ratios, method=K1()).value, 4)
    0.0667
    """

    self_normalised: bool = False

    def terms(self, w: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return _weighted(w, -s)

    def estimate(self, ratios: LogRatios) -> Estimate:
        """See `kullback.estimate.kl`."""
        return _mean(self, ratios, "O(1/n), from the self-normalised weights" if self.self_normalised else "none")


@dataclass(frozen=True)
class K2:
    """The mean of ½ log²(p/q): low variance, but its mean is KL only to second order in log(p/q).

    For N(0,1) against N(0.1,1) it is 0.25 % too high, against N(1,1) 25 %. Source: Schulman 2020 (k2).

    >>> from kullback import LogRatios, estimate
    >>> ratios = LogRatios([-1.0, -1.0, -2.0], [-1.1, -0.7, -2.4], drawn_from="p")   # log(p/q) = 0.1, -0.3, 0.4
    >>> round(estimate.kl(ratios, method=K2()).value, 4)
    0.0433
    """

    def terms(self, w: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return _weighted(w, 0.5 * s * s)

    def estimate(self, ratios: LogRatios) -> Estimate:
        """See `kullback.estimate.kl`."""
        found = _mean(self, ratios, "right to second order in log(p/q) only")
        unbiased = _mean(K3(), ratios, "none")
        if found.verdict or not abs(found.raw - unbiased.raw) > found.stderr:
            return found
        return replace(found, verdict=f"K3() gives {unbiased.raw:.4g}: p and q are too far apart for the second order")


@dataclass(frozen=True)
class K3:
    """The mean of q/p - 1 - log(q/p): no term is negative; unbiased if p has mass wherever q has. Schulman 2020 (k3).

    >>> from kullback import LogRatios, estimate
    >>> ratios = LogRatios([-1.0, -1.0, -2.0], [-1.1, -0.7, -2.4], drawn_from="p")   # log(p/q) = 0.1, -0.3, 0.4
    >>> round(estimate.kl(ratios, method=K3()).value, 4)
    0.0417
    """

    def terms(self, w: Tensor, v: Tensor, s: Tensor) -> Tensor:
        finite = torch.isfinite(s)
        return torch.where(finite, excess(w, v, torch.where(finite, s, 0.0)), torch.where(s > 0, v, math.inf))

    def estimate(self, ratios: LogRatios) -> Estimate:
        """See `kullback.estimate.kl`."""
        return _mean(self, ratios, "none")


@dataclass(frozen=True)
class Regressed:
    """K1 with the control variates q/r - 1 and p/r - 1, whose coefficients are fitted by least squares.

    Its standard error is asymptotically the smallest of those here. With draws from p it needs, like `K3`, a q without
    mass or heavy tails beyond p's. Source: Owen 2013, section 8.9.

    >>> from kullback import estimate
    >>> from torch.distributions import Normal
    >>> p, q, g = Normal(0.0, 1.0), Normal(0.1, 1.0), torch.Generator().manual_seed(0)
    >>> found = estimate.kl(p, q, method=estimate.MonteCarlo(1000, Regressed()), generator=g)   # the truth is 0.005
    >>> bool(abs(found.value - 0.005) < 4 * found.stderr < 0.001)
    True
    """

    def terms(self, w: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return _weighted(w, -s)

    def estimate(self, ratios: LogRatios) -> Estimate:
        """See `kullback.estimate.kl`."""
        w, v, s = _weights(ratios)
        controls = torch.stack([c - 1.0 for c in (w, v) if not bool((c == 1.0).all())] or [torch.zeros_like(w)], -1)
        y, n = self.terms(w, v, s), len(w)
        df = n - 1 - controls.shape[-1]
        if df < 1 or not bool(torch.isfinite(y).all() and torch.isfinite(controls).all()):
            return _mean(self, ratios, "none")
        centred = controls - controls.mean(0)
        beta = torch.linalg.lstsq(centred, (y - y.mean()).unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        return _summarise(self, y - controls @ beta, w, v, "O(1/n), from the fitted coefficients", df)


Term: TypeAlias = K1 | K2 | K3 | Regressed


@dataclass(frozen=True)
class MonteCarlo:
    """Draw n times from p, and average log(p/q) as `term` says.

    Args:
        n: the number of draws, >= 2.
        term: `K1()`; `Regressed()` and `K3()` are less noisy when p and q are near and have like tails.
    Takes: two distributions with `log_prob`, p with `sample`. A draw outside q's support makes the value +inf.

    >>> from kullback import estimate
    >>> from torch.distributions import Normal
    >>> found = estimate.kl(Normal(0.0, 1.0), Normal(1.0, 1.0), method=MonteCarlo(1000),
    ...                     generator=torch.Generator().manual_seed(0))    # the truth is 0.5
    >>> found.n, bool(abs(found.value - 0.5) < 4 * found.stderr)
    (1000, True)
    """

    n: int = 10_000
    term: Term = K1()

    def __post_init__(self) -> None:
        if not (isinstance(self.n, int) and self.n >= 2):
            raise FormError(f"MonteCarlo: n is {self.n!r}, but a standard error needs at least 2 draws.")

    def estimate(self, p: Distribution, q: Distribution, generator: torch.Generator | None) -> Estimate:
        """See `kullback.estimate.kl`."""
        one_distribution("p", p)
        one_distribution("q", q)
        if p.event_shape != q.event_shape:
            raise FormError(
                f"estimate.kl: p has event shape {tuple(p.event_shape)} but q has {tuple(q.event_shape)}; "
                "both must be distributions over the same space."
            )
        source = source_of(generator)
        x = draw(p, self.n, source)
        ratios = LogRatios(log_density(p, x), log_density(q, x), drawn_from="p")
        if isinstance(self.term, K3 | Regressed) and _reaches_further(q, p, self.n, source):
            raise FormError(
                f"MonteCarlo: {type(self.term).__name__} takes the mean of q/p under p for 1, but q has mass where p "
                "has none. Write MonteCarlo(n, K1())."
            )
        return replace(self.term.estimate(ratios), method=self)


def _reaches_further(q: Distribution, p: Distribution, n: int, source: torch.Generator) -> bool:
    """Whether some draw of q has no density under p; a q without draws is taken at its word."""
    try:
        x = draw(q, n, source)
    except NotImplementedError:
        return False
    return bool((log_density(p, x) == -math.inf).any())


def _weights(ratios: LogRatios) -> tuple[Tensor, Tensor, Tensor]:
    """w = p/r, v = q/r, s = log(q/p); s is +inf where p alone has no mass, -inf where q alone has none."""
    log_p, log_q, log_r = ratios.data
    nowhere = (log_p == -math.inf) & (log_q == -math.inf)
    s = torch.where(nowhere, 0.0, log_q - log_p)
    return torch.exp(log_p - log_r), torch.exp(log_q - log_r), s


def _weighted(w: Tensor, f: Tensor) -> Tensor:
    """w·f with 0·inf = 0."""
    return torch.where(w > 0, w * torch.where(w > 0, f, 0.0), 0.0)


def _mean(method: Term, ratios: LogRatios, bias: str) -> Estimate:
    w, v, s = _weights(ratios)
    terms = method.terms(w, v, s)
    if isinstance(method, K1) and method.self_normalised and bool(w.sum() > 0):
        share = w / w.mean()
        value = (share * torch.where(w > 0, -s, 0.0)).mean()
        terms = value + share * (torch.where(w > 0, -s, 0.0) - value)  # the delta method's influence values
    return _summarise(method, terms, w, v, bias, len(w) - 1)


def _summarise(method: Term, terms: Tensor, w: Tensor, v: Tensor, bias: str, df: int) -> Estimate:
    """Mean and standard error of terms whose mean is the estimate."""
    n, value = len(terms), float(terms.mean())
    weights = float(w.sum() ** 2 / (w**2).sum()) if bool(w.any()) else 0.0
    deviations = (terms - terms.mean()) ** 2
    stderr = math.sqrt(float(deviations.sum()) / (df * n)) if df > 0 and math.isfinite(value) else math.nan
    # the coefficients of Regressed are only as good as the variance of the control
    shape = max(pareto_shape(terms), pareto_shape(v) if isinstance(method, Regressed) else -math.inf)
    details = {"effective_sample_size": weights} | ({"tail_shape": shape} if math.isfinite(shape) else {})
    return Estimate(
        value,
        stderr,
        n,
        bias=bias,
        method=method,
        df=max(df, 1),
        verdict=_verdict(value, n, weights, _control_is_off(method, v), shape),
        details=details,
    )


def _control_is_off(method: Term, v: Tensor) -> float:
    """The mean of v if it is more than 5 standard errors below 1 and the method relies on it, else 0."""
    mean, n = float(v.mean()), len(v)
    if n < 30 or not isinstance(method, K3 | Regressed) or not math.isfinite(mean):
        return 0.0
    return mean if mean + 5.0 * float(v.std()) / math.sqrt(n) < 1.0 else 0.0


def _verdict(value: float, n: int, weights: float, off: float, shape: float) -> str:
    if value == math.inf:
        return "a draw with mass under p has no density under q, so that KL(p‖q) is +inf (or log_q underflowed)"
    if n == 1:
        return "one draw says nothing about its own spread"
    if weights < 0.5 * n:
        return f"the importance weights rest on {weights:.3g} effective draws of {n}: draw closer to p"
    if off:
        return f"q/p averages {off:.3g} where it should be 1: q has mass that the draws do not reach. Write K1()"
    if shape > HEAVY:
        return f"the terms have tails as heavy as a Pareto law of shape {shape:.2g}: the few that matter may be missing"
    return ""
