"""Any family with known entropy and moments against a Normal, and Normal against Laplace.

KL(p‖Normal(μ, σ)) = negentropy(p) + KL(Normal(mean, variance of p)‖Normal(μ, σ)): both parts >= 0. +inf where p has
no finite variance.
"""

import math

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

from kullback.exact.registry import closed_form, doubles, infinite_where
from kullback.exact.special import LOG_2PI_E, log_ratio, rise

from .moments import moments


def to_normal(p: Distribution, q: Normal) -> Tensor:
    """negentropy(p) + ½ (Δ/σ)² + ½ rise(2 log(deviation/σ)); +inf without a finite variance"""
    m, (loc, scale) = moments(p), doubles(q, "loc", "scale")
    infinite = torch.isinf(m.deviation)
    mean, deviation = torch.where(infinite, loc, m.mean), torch.where(infinite, 1.0, m.deviation)
    spread = 0.5 * ((mean - loc) / scale) ** 2 + 0.5 * rise(2.0 * log_ratio(deviation, scale))
    return infinite_where(infinite, m.negentropy + spread)


for _family in (Beta, ContinuousBernoulli, Exponential, Gamma, Gumbel, Laplace, LogNormal, Pareto, StudentT, Uniform):
    closed_form(_family, Normal, source="Cover & Thomas 2006, theorem 8.6.5: the Normal has the largest entropy")(
        to_normal
    )


@closed_form(Normal, Laplace, source="mean of the folded Normal: Leone, Nelson & Nottingham 1961")
def normal_laplace(p: Normal, q: Laplace) -> Tensor:
    """log(2b) - ½ log(2πe σ²) + [σ √(2/π) e^(-z²/2) + Δ erf(z/√2)]/b, z = Δ/σ"""
    (m, s), (n, b) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
    z = (m - n) / s
    folded = math.sqrt(2.0 / math.pi) * torch.exp(-0.5 * z * z) + z * torch.erf(z / math.sqrt(2.0))
    ratio = s / b
    return math.log(2.0) - 0.5 * LOG_2PI_E - torch.log(ratio) + folded * ratio
