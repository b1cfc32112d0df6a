"""Log-densities in float64 that hold anywhere: singular at an end, or so far out that x itself overflows.

A family on the half-line reads log(x - low), one on an interval the logarithms of both distances, so that its logarithm
is right wherever float64 can hold that logarithm. PyTorch's own `log_prob`, which reads x, serves what is not listed.
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

_LOG_2PI = math.log(2.0 * math.pi)
_LARGE = 30.0


def _normal(d: Any, at: Place) -> Tensor:
    z = (at.x - d.loc) / d.scale
    return -0.5 * z * z - torch.log(d.scale) - 0.5 * _LOG_2PI


def _laplace(d: Any, at: Place) -> Tensor:
    return -((at.x - d.loc) / d.scale).abs() - torch.log(2.0 * d.scale)


def _log1p_square(z: Tensor) -> Tensor:
    """log(1 + z²), also where z² overflows."""
    far = z.abs() > 1e100
    near = torch.log1p(torch.where(far, 1.0, z) ** 2)
    return torch.where(far, 2.0 * torch.log(torch.where(far, z, 1.0).abs()), near)


def _cauchy(d: Any, at: Place) -> Tensor:
    return -_log1p_square((at.x - d.loc) / d.scale) - torch.log(math.pi * d.scale)


def _student(d: Any, at: Place) -> Tensor:
    z = (at.x - d.loc) / d.scale
    normal = torch.isinf(d.df)
    df = torch.where(normal, 1.0, d.df)
    large = df >= LARGE_DF
    half = torch.where(large, df, LARGE_DF) / 2.0
    near = sum(c * half ** -(2 * k + 1) for k, c in enumerate(HALF_STEP)) - 0.5 * _LOG_2PI
    v = torch.where(large, 1.0, df)
    far = torch.lgamma((v + 1.0) / 2.0) - torch.lgamma(v / 2.0) - 0.5 * torch.log(math.pi * v)
    heavy = torch.where(large, near, far) - 0.5 * (df + 1.0) * _log1p_square(z / torch.sqrt(df))
    return torch.where(normal, -0.5 * z * z - 0.5 * _LOG_2PI, heavy) - torch.log(d.scale)


def _gumbel(d: Any, at: Place) -> Tensor:
    y = (at.x - d.loc) / d.scale
    return -y - torch.exp(-y) - torch.log(d.scale)


def _logit_relaxed(d: Any, at: Place) -> Tensor:
    y = d.logits - d.temperature * at.x
    return torch.log(d.temperature) - log1pexp(y) - log1pexp(-y)


def _vonmises(d: Any, at: Place) -> Tensor:
    k = d.concentration
    return -2.0 * k * torch.sin(0.5 * (at.x - d.loc)) ** 2 - _LOG_2PI - torch.log(torch.special.i0e(k))


def _uniform(d: Any, at: Place) -> Tensor:
    return -torch.log(d.high - d.low) + 0.0 * at.x


def _gamma_core(a: Tensor, log_rate: Tensor, u: Tensor) -> Tensor:
    """Log density of the logarithm u: a log b - log Γ(a) + a u - b e^u, written around its mode."""
    large = a >= _LARGE
    v = torch.where(large, a, _LARGE)
    series = 0.5 * (_LOG_2PI - torch.log(v)) + sum(c * v ** -(2 * k + 1) for k, c in enumerate(STIRLING))
    w = torch.where(large, 1.0, a)
    rest = torch.where(large, series, torch.lgamma(w) - w * torch.log(w) + w)  # log Γ(a) - a log a + a
    return -a * rise(u + log_rate - torch.log(a)) - rest


def _gamma(d: Any, at: Place) -> Tensor:
    return _gamma_core(d.concentration, torch.log(d.rate), at.above) - at.above


def _exponential(d: Any, at: Place) -> Tensor:
    return torch.log(d.rate) - d.rate * torch.exp(at.above)


def _inverse_gamma(d: Any, at: Place) -> Tensor:
    return _gamma_core(d.concentration, torch.log(d.rate), -at.above) - at.above


def _weibull(d: Any, at: Place) -> Tensor:
    k, z = d.concentration, at.above - torch.log(d.scale)
    return torch.log(k) + k * z - torch.exp(k * z) - at.above


def _half_normal(d: Any, at: Place) -> Tensor:
    z = at.above - torch.log(d.scale)
    return -0.5 * torch.exp(2.0 * z) + 0.5 * math.log(2.0 / math.pi) - torch.log(d.scale)


def _half_cauchy(d: Any, at: Place) -> Tensor:
    return math.log(2.0 / math.pi) - torch.log(d.scale) - log1pexp(2.0 * (at.above - torch.log(d.scale)))


_WIDE = 600.0  # log of a distance from which on x itself may overflow


def _pareto(d: Any, at: Place) -> Tensor:
    wide = at.above > _WIDE
    log_x = torch.where(wide, at.above, torch.log(torch.where(wide, 1.0, at.x)))
    return torch.log(d.alpha) - torch.log(d.scale) - (d.alpha + 1.0) * (log_x - torch.log(d.scale))


def _generalized_pareto(d: Any, at: Place) -> Tensor:
    """Regular at its lower end, where z is (x - loc) / scale; at an upper end 1 + shape z = -shape (high - x) / scale."""
    shape, log_scale = d.concentration, torch.log(d.scale)
    heavy, bounded, wide = shape > 0, shape < 0, at.above > _WIDE
    z = (torch.where(wide, d.loc, at.x) - d.loc) / d.scale
    k = torch.where(heavy, shape, 1.0)
    far = torch.log(k) + torch.where(wide, at.above, 0.0) - log_scale
    tail = (1.0 / k + 1.0) * torch.where(wide, far, torch.log1p(k * torch.where(heavy, z, 0.0)))
    j = torch.where(bounded, -shape, 1.0)
    near = bounded & (at.below < at.above)
    left = torch.where(
        near,
        torch.log(j) + torch.where(near, at.below, 0.0) - log_scale,
        torch.log1p(-j * torch.where(bounded & ~near, z, 0.0)),
    )
    end = (1.0 - 1.0 / j) * left
    none, z = torch.where(heavy | bounded, 0.0, shape), z.clamp(max=1e100)
    light = -z + none * (0.5 * z * z - z) + none**2 * (0.5 * z * z - z**3 / 3.0)  # with its slopes at shape 0
    light = torch.where(wide, -torch.exp(at.above - log_scale), light)
    return torch.where(heavy, -tail, torch.where(bounded, -end, light)) - log_scale


def _fisher(d: Any, at: Place) -> Tensor:
    a, b = d.df1 / 2.0, d.df2 / 2.0
    u = torch.log(a) - torch.log(b) + at.above
    return a * u - (a + b) * log1pexp(u) - _log_beta(a, b) - at.above


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _beta(d: Any, at: Place) -> Tensor:
    a, b = d.concentration1, d.concentration0
    return (a - 1.0) * at.above + (b - 1.0) * at.below - _log_beta(a, b)


def _kumaraswamy(d: Any, at: Place) -> Tensor:
    a, b = d.concentration1, d.concentration0
    low = at.above < at.below
    log_minus_log = torch.where(  # log(-log x)
        low,
        torch.log(-torch.where(low, at.above, -1.0)),
        log_log1p_minus(torch.where(low, -1.0, at.below)),
    )
    return torch.log(a) + torch.log(b) + (a - 1.0) * at.above + (b - 1.0) * log1mexp_log(torch.log(a) + log_minus_log)


def _continuous_bernoulli(d: Any, at: Place) -> Tensor:
    eta = logits(d)
    return eta * (at.x - 0.5) - log_sinhc(0.5 * eta)


Formula = Callable[[Any, Place], Tensor]
LOG_DENSITY: dict[type, Formula] = {
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
