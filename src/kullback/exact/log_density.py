"""Log-densities in float64 that hold anywhere: singular at an end, or so far out that x itself overflows.

A family on the half-line reads log(x - low), one on an interval the logarithms of both distances, so that its logarithm
is right wherever float64 can hold that logarithm. PyTorch's own `log_prob`, which reads x, serves what is not listed.
A formula takes the parameters once, and gives the function of places.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    Exponential,
    FisherSnedecor,
    Gamma,
    GeneralizedPareto,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    Normal,
    Pareto,
    StudentT,
    Uniform,
    VonMises,
    Weibull,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from .place import Place
from .registry import logits
from .special import HALF_STEP, LARGE_DF, STIRLING, log1mexp_log, log1pexp, log_log1p_minus, log_sinhc, rise

Read = Callable[[Place], Tensor]

_LOG_2PI = math.log(2.0 * math.pi)
_LARGE = 30.0


def _normal(d: Any) -> Read:
    constant = torch.log(d.scale) + 0.5 * _LOG_2PI
    return lambda at: -0.5 * ((at.x - d.loc) / d.scale) ** 2 - constant


def _laplace(d: Any) -> Read:
    constant = torch.log(2.0 * d.scale)
    return lambda at: -((at.x - d.loc) / d.scale).abs() - constant


def _log1p_square(z: Tensor) -> Tensor:
    """log(1 + z²), also where z² overflows."""
    if float(z.detach().abs().max()) < 1e100:
        return torch.log1p(z * z)
    far = z.abs() > 1e100
    near = torch.log1p(torch.where(far, 1.0, z) ** 2)
    return torch.where(far, 2.0 * torch.log(torch.where(far, z, 1.0).abs()), near)


def _cauchy(d: Any) -> Read:
    constant = torch.log(math.pi * d.scale)
    return lambda at: -_log1p_square((at.x - d.loc) / d.scale) - constant


def _student(d: Any) -> Read:
    normal = torch.isinf(d.df)
    df = torch.where(normal, 1.0, d.df)
    large = df >= LARGE_DF
    half = torch.where(large, df, LARGE_DF) / 2.0
    near = sum(c * half ** -(2 * k + 1) for k, c in enumerate(HALF_STEP)) - 0.5 * _LOG_2PI
    v = torch.where(large, 1.0, df)
    far = torch.lgamma((v + 1.0) / 2.0) - torch.lgamma(v / 2.0) - 0.5 * torch.log(math.pi * v)
    constant = torch.where(normal, -0.5 * _LOG_2PI, torch.where(large, near, far)) - torch.log(d.scale)
    width, power = torch.sqrt(df) * d.scale, -0.5 * (df + 1.0)
    if not bool(normal.any()):
        return lambda at: power * _log1p_square((at.x - d.loc) / width) + constant

    def read(at: Place) -> Tensor:
        z: Tensor = (at.x - d.loc) / width
        return torch.where(normal, -0.5 * z * z, power * _log1p_square(z)) + constant

    return read


def _gumbel(d: Any) -> Read:
    constant = torch.log(d.scale)

    def read(at: Place) -> Tensor:
        y: Tensor = (at.x - d.loc) / d.scale
        return -y - torch.exp(-y) - constant

    return read


def _logit_relaxed(d: Any) -> Read:
    log_temperature, odds = torch.log(d.temperature), logits(d)

    def read(at: Place) -> Tensor:
        y = odds - d.temperature * at.x
        return log_temperature - log1pexp(y) - log1pexp(-y)

    return read


def _vonmises(d: Any) -> Read:
    k = d.concentration
    constant = _LOG_2PI + torch.log(torch.special.i0e(k))
    return lambda at: -2.0 * k * torch.sin(0.5 * (at.x - d.loc)) ** 2 - constant


def _uniform(d: Any) -> Read:
    constant = torch.log(d.high - d.low)
    return lambda at: 0.0 * at.x - constant


def _gamma_core(a: Tensor, log_rate: Tensor) -> Callable[[Tensor], Tensor]:
    """Log density of the logarithm u: a log b - log Γ(a) + a u - b e^u, written around its mode."""
    large = a >= _LARGE
    v = torch.where(large, a, _LARGE)
    series = 0.5 * (_LOG_2PI - torch.log(v)) + sum(c * v ** -(2 * k + 1) for k, c in enumerate(STIRLING))
    w = torch.where(large, 1.0, a)
    rest = torch.where(large, series, torch.lgamma(w) - w * torch.log(w) + w)  # log Γ(a) - a log a + a
    shift = log_rate - torch.log(a)
    return lambda u: -a * rise(u + shift) - rest


def _gamma(d: Any) -> Read:
    core = _gamma_core(d.concentration, torch.log(d.rate))
    return lambda at: core(at.above) - at.above


def _exponential(d: Any) -> Read:
    constant = torch.log(d.rate)
    return lambda at: constant - d.rate * torch.exp(at.above)


def _inverse_gamma(d: Any) -> Read:
    core = _gamma_core(d.concentration, torch.log(d.rate))
    return lambda at: core(-at.above) - at.above


def _weibull(d: Any) -> Read:
    k, log_k, log_scale = d.concentration, torch.log(d.concentration), torch.log(d.scale)

    def read(at: Place) -> Tensor:
        z = k * (at.above - log_scale)
        value: Tensor = log_k + z - torch.exp(z) - at.above
        return value

    return read


def _half_normal(d: Any) -> Read:
    log_scale = torch.log(d.scale)
    constant = 0.5 * math.log(2.0 / math.pi) - log_scale
    return lambda at: constant - 0.5 * torch.exp(2.0 * (at.above - log_scale))


def _half_cauchy(d: Any) -> Read:
    log_scale = torch.log(d.scale)
    constant = math.log(2.0 / math.pi) - log_scale
    return lambda at: constant - log1pexp(2.0 * (at.above - log_scale))


_WIDE = 600.0  # log of a distance from which on x itself may overflow


def _pareto(d: Any) -> Read:
    log_scale, log_alpha = torch.log(d.scale), torch.log(d.alpha)

    def read(at: Place) -> Tensor:
        wide = at.above > _WIDE
        log_x = torch.where(wide, at.above, torch.log(torch.where(wide, 1.0, at.x)))
        value: Tensor = log_alpha - log_scale - (d.alpha + 1.0) * (log_x - log_scale)
        return value

    return read


def _generalized_pareto(d: Any) -> Read:
    """Regular at its lower end, in z = (x - loc) / scale; at an upper one 1 + shape z = -shape (high - x) / scale."""
    shape, log_scale = d.concentration, torch.log(d.scale)
    heavy, bounded = shape > 0, shape < 0
    k, j = torch.where(heavy, shape, 1.0), torch.where(bounded, -shape, 1.0)
    none = torch.where(heavy | bounded, 0.0, shape)

    def read(at: Place) -> Tensor:
        wide = at.above > _WIDE
        z = (torch.where(wide, d.loc, at.x) - d.loc) / d.scale
        far = torch.log(k) + torch.where(wide, at.above, 0.0) - log_scale
        tail = (1.0 / k + 1.0) * torch.where(wide, far, torch.log1p(k * torch.where(heavy, z, 0.0)))
        near = bounded & (at.below < at.above)
        left = torch.where(
            near,
            torch.log(j) + torch.where(near, at.below, 0.0) - log_scale,
            torch.log1p(-j * torch.where(bounded & ~near, z, 0.0)),
        )
        end = (1.0 - 1.0 / j) * left
        z = z.clamp(max=1e100)
        light = -z + none * (0.5 * z * z - z) + none**2 * (0.5 * z * z - z**3 / 3.0)  # with its slopes at shape 0
        light = torch.where(wide, -torch.exp(at.above - log_scale), light)
        return torch.where(heavy, -tail, torch.where(bounded, -end, light)) - log_scale

    return read


def _fisher(d: Any) -> Read:
    a, b = d.df1 / 2.0, d.df2 / 2.0
    shift, constant = torch.log(a) - torch.log(b), _log_beta(a, b)

    def read(at: Place) -> Tensor:
        u = at.above + shift
        value: Tensor = a * u - (a + b) * log1pexp(u) - constant - at.above
        return value

    return read


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _beta(d: Any) -> Read:
    a, b = d.concentration1, d.concentration0
    constant = _log_beta(a, b)
    return lambda at: (a - 1.0) * at.above + (b - 1.0) * at.below - constant


def _kumaraswamy(d: Any) -> Read:
    a, b = d.concentration1, d.concentration0
    log_a, log_b = torch.log(a), torch.log(b)

    def read(at: Place) -> Tensor:
        low = at.above < at.below
        log_minus_log = torch.where(  # log(-log x)
            low,
            torch.log(-torch.where(low, at.above, -1.0)),
            log_log1p_minus(torch.where(low, -1.0, at.below)),
        )
        rest = (b - 1.0) * log1mexp_log(log_a + log_minus_log)
        value: Tensor = log_a + log_b + (a - 1.0) * at.above + rest
        return value

    return read


def _continuous_bernoulli(d: Any) -> Read:
    eta = logits(d)
    constant = log_sinhc(0.5 * eta)
    return lambda at: eta * (at.x - 0.5) - constant


LOG_DENSITY: dict[type, Callable[[Any], Read]] = {
    Normal: _normal,
    Laplace: _laplace,
    Cauchy: _cauchy,
    StudentT: _student,
    Gumbel: _gumbel,
    LogitRelaxedBernoulli: _logit_relaxed,
    VonMises: _vonmises,
    Uniform: _uniform,
    Gamma: _gamma,
    Chi2: _gamma,
    Exponential: _exponential,
    InverseGamma: _inverse_gamma,
    Weibull: _weibull,
    HalfNormal: _half_normal,
    HalfCauchy: _half_cauchy,
    Pareto: _pareto,
    GeneralizedPareto: _generalized_pareto,
    FisherSnedecor: _fisher,
    Beta: _beta,
    Kumaraswamy: _kumaraswamy,
    ContinuousBernoulli: _continuous_bernoulli,
}
# read nothing but log(x - low), so that x may overflow
FROM_LOGARITHM = (
    Gamma,
    Exponential,
    InverseGamma,
    Weibull,
    HalfNormal,
    HalfCauchy,
    Pareto,
    GeneralizedPareto,
    FisherSnedecor,
)
