"""Means, variances and entropies of the families that are measured against another one. All float64."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    ContinuousBernoulli,
    Distribution,
    Exponential,
    Gamma,
    Gumbel,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
)

from kullback.exact.registry import closed_form, doubles, logits
from kullback.exact.shapes import together
from kullback.exact.special import (
    EULER,
    HALF_STEP,
    LARGE_DF,
    LOG_2PI_E,
    digamma_minus_log,
    gamma_entropy_rest,
    log_sinhc,
    relative_entropy,
    rise,
)

from .gamma import beta_parameters


class Moments(NamedTuple):
    """Mean, standard deviation, differential entropy, and negentropy ½ log 2πe + log(deviation) - entropy >= 0.

    The deviation, as its square would underflow first. Where it is infinite it is +inf, the mean likewise; the
    entropies are always finite.
    """

    mean: Tensor
    deviation: Tensor
    entropy: Tensor
    negentropy: Tensor


def half_mean(eta: Tensor) -> Tensor:
    """Mean of the continuous Bernoulli minus 1/2: ½ coth(η/2) - 1/η, by its series Σ B_2k η^(2k-1)/(2k)! below 1."""
    small = eta.abs() < 1.0
    t = torch.where(small, eta, 0.0)
    series = torch.zeros_like(t)
    for c in reversed(_MEAN):
        series = series * t * t + c
    u = torch.where(small, 2.0, eta)
    return torch.where(small, series * t, 0.5 / torch.tanh(u / 2.0) - 1.0 / u)


_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
_MEAN = tuple(b / math.factorial(2 * k + 2) for k, b in enumerate(_BERNOULLI))


def mean_slope(eta: Tensor) -> Tensor:
    """Variance of the continuous Bernoulli: 1/η² - 1/(4 sinh²(η/2))."""
    small = eta.abs() < 1.0
    t = torch.where(small, eta, 0.0)
    series = torch.zeros_like(t)
    for k in range(len(_MEAN) - 1, -1, -1):
        series = series * t * t + (2 * k + 1) * _MEAN[k]
    u = torch.where(small, 2.0, eta.abs())
    e = torch.exp(-u)
    return torch.where(small, series, 1.0 / u**2 - e / torch.expm1(-u) ** 2)


def moments(d: Distribution) -> Moments:
    """Of one of the families below."""
    if isinstance(d, Normal):
        loc, scale = doubles(d, "loc", "scale")
        return _of(loc, scale, 0.5 * LOG_2PI_E + torch.log(scale), torch.zeros_like(scale))
    if isinstance(d, Laplace):
        loc, scale = doubles(d, "loc", "scale")
        return _shaped(loc, math.sqrt(2.0) * scale, 1.0 + math.log(2.0) + torch.log(scale))
    if isinstance(d, Gumbel):
        loc, scale = doubles(d, "loc", "scale")
        return _shaped(loc + EULER * scale, math.pi / math.sqrt(6.0) * scale, 1.0 + EULER + torch.log(scale))
    if isinstance(d, Uniform):
        low, high = doubles(d, "low", "high")
        return _shaped((low + high) / 2.0, (high - low) / math.sqrt(12.0), torch.log(high - low))
    if isinstance(d, Exponential):
        (rate,) = doubles(d, "rate")
        return _shaped(1.0 / rate, 1.0 / rate, 1.0 - torch.log(rate))
    if isinstance(d, Gamma):
        a, rate = together(*doubles(d, "concentration", "rate"))
        rest = gamma_entropy_rest(a)
        return Moments(a / rate, torch.sqrt(a) / rate, 0.5 * (LOG_2PI_E + torch.log(a)) - torch.log(rate) + rest, -rest)
    if isinstance(d, Beta):
        return _beta(d)
    if isinstance(d, ContinuousBernoulli):
        eta = logits(d)
        return _shaped(0.5 + half_mean(eta), torch.sqrt(mean_slope(eta)), -_to_standard_uniform(eta))
    if isinstance(d, Pareto):
        scale, alpha = together(*doubles(d, "scale", "alpha"))
        mean = _where_above(alpha, 1.0, lambda a: scale * a / (a - 1.0))
        deviation = _where_above(alpha, 2.0, lambda a: scale * torch.sqrt(a / (a - 2.0)) / (a - 1.0))
        return _shaped(mean, deviation, torch.log(scale) - torch.log(alpha) + 1.0 + 1.0 / alpha)
    if isinstance(d, LogNormal):
        loc, scale = doubles(d, "loc", "scale")
        mean = torch.exp(loc + scale**2 / 2.0)
        return _shaped(mean, torch.sqrt(torch.expm1(scale**2)) * mean, 0.5 * LOG_2PI_E + torch.log(scale) + loc)
    if isinstance(d, StudentT):
        df, loc, scale = together(*doubles(d, "df", "loc", "scale"))
        large = df >= LARGE_DF
        v = torch.where(large, LARGE_DF, df)
        half = (v + 1.0) / 2.0
        log_beta = torch.lgamma(v / 2.0) + math.lgamma(0.5) - torch.lgamma(half)
        entropy = half * (torch.digamma(half) - torch.digamma(v / 2.0)) + 0.5 * torch.log(v) + log_beta
        deviation = _where_above(df, 2.0, lambda v: scale / torch.sqrt(1.0 - 2.0 / v))
        shaped = _shaped(loc, deviation, entropy + torch.log(scale))
        far = _student_negentropy(torch.where(large, df, LARGE_DF))
        normal = 0.5 * LOG_2PI_E + torch.log(torch.where(large, deviation, 1.0))
        return shaped._replace(
            entropy=torch.where(large, normal - far, shaped.entropy),
            negentropy=torch.where(large, far, shaped.negentropy),
        )
    raise AssertionError(f"no moments for {type(d).__name__}")


def entropy(p: Distribution) -> Tensor:
    """Differential entropy."""
    return moments(p).entropy


for _family in (
    Beta,
    ContinuousBernoulli,
    Exponential,
    Gamma,
    Gumbel,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
):
    closed_form(_family, quantity="entropy", source="Cover & Thomas 2006, table 17.1")(entropy)


def _student_negentropy(df: Tensor) -> Tensor:
    """3/(4 df²) + ...: by Stirling's series, where the difference of entropies has lost its digits.

    With u = 2/df: ½ (-log(1-u) - u) + Σ_(k>0) (2k+2) c_k u^(2k+1) + ½ Σ_k (2k+1) c_k u^(2k+2).
    """
    u = 2.0 / df
    value = 0.5 * rise(torch.log1p(-u))
    for k, c in enumerate(HALF_STEP):
        value = value + 0.5 * (2 * k + 1) * c * u ** (2 * k + 2)
        if k > 0:
            value = value + (2 * k + 2) * c * u ** (2 * k + 1)
    return value


def _of(mean: Tensor, deviation: Tensor, entropy: Tensor, negentropy: Tensor) -> Moments:
    return Moments(*together(mean, deviation, entropy, negentropy))


def _shaped(mean: Tensor, deviation: Tensor, entropy: Tensor) -> Moments:
    finite = torch.isfinite(deviation)
    log_deviation = torch.log(torch.where(finite, deviation, 1.0))
    return _of(mean, deviation, entropy, 0.5 * LOG_2PI_E + log_deviation - entropy)


def _where_above(x: Tensor, bound: float, f: Callable[[Tensor], Tensor]) -> Tensor:
    above = x > bound
    return torch.where(above, f(torch.where(above, x, bound + 1.0)), torch.inf)


def _beta(d: Beta) -> Moments:
    a, b = beta_parameters(d).unbind(-1)
    s = a + b
    rest = gamma_entropy_rest(a) + gamma_entropy_rest(b) - gamma_entropy_rest(s)
    gap = digamma_minus_log(s)
    deviation = torch.sqrt(a * b / (s + 1.0)) / s
    entropy = 0.5 * (LOG_2PI_E + torch.log(a) + torch.log(b) - 3.0 * torch.log(s)) - gap + rest
    return Moments(a / s, deviation, entropy, gap - 0.5 * torch.log1p(1.0 / s) - rest)


def _to_standard_uniform(eta: Tensor) -> Tensor:
    """KL of the continuous Bernoulli to U(0, 1): η (mean - ½) - log sinhc(η/2)."""
    return eta * half_mean(eta) - log_sinhc(eta / 2.0)


def mean_log(low: Tensor, high: Tensor) -> Tensor:
    """Mean of log x over [low, high], low >= 0: log low + [(1+u) log(1+u) - u]/u with u = (high - low)/low."""
    edge = low <= 0
    base = torch.where(edge, 1.0, low)
    u = torch.where(edge, 1.0, (high - low) / base)
    from_zero = torch.log(torch.where(high > 0, high, 1.0)) - 1.0
    inside = torch.log(base) + _excess_of_one(u) / u
    return torch.where(edge, from_zero, inside)


def _excess_of_one(u: Tensor) -> Tensor:
    """(1 + u) log(1 + u) - u."""
    return relative_entropy(1.0 + u, torch.ones_like(u), u)
