"""Families with a moment generating function against a Gumbel.

With M = E e^(-x/β) and y = μ/β + log M,
KL(p‖Gumbel(μ, β)) = rise(y) + [1 + log M + mean/β + log β - entropy], where the bracket is the smallest value over μ.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma, Gumbel, Laplace, Normal, Uniform

from kullback.exact.registry import closed_form, doubles, infinite_where
from kullback.exact.shapes import together
from kullback.exact.special import LOG_2PI_E, gamma_entropy_rest, log1mexp, log_ratio, log_sinhc, rise

_SOURCE = "moment generating function; Nawa & Nadarajah 2024"


@closed_form(Normal, Gumbel, source=_SOURCE)
def normal_gumbel(p: Normal, q: Gumbel) -> Tensor:
    """rise(Δ + w/2) + ½ (w - 1 - log w) + 1 - ½ log 2π, w = σ²/β², Δ = (μq - μp)/β"""
    (m, s), (n, b) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
    w = 2.0 * log_ratio(s, b)
    return rise((n - m) / b + 0.5 * (s / b) ** 2) + 0.5 * rise(w) + 1.0 - 0.5 * math.log(2.0 * math.pi)


@closed_form(Exponential, Gumbel, source=_SOURCE)
def exponential_gumbel(p: Exponential, q: Gumbel) -> Tensor:
    """rise(μ/β - log(1 + 1/c)) + 2 log c - log(1 + c) + 1/c, c = λβ"""
    (rate,), (loc, b) = doubles(p, "rate"), doubles(q, "loc", "scale")
    c = rate * b
    return rise(loc / b - torch.log1p(1.0 / c)) + 2.0 * torch.log(c) - torch.log1p(c) + 1.0 / c


@closed_form(Gamma, Gumbel, source=_SOURCE)
def gamma_gumbel(p: Gamma, q: Gumbel) -> Tensor:
    """rise(μ/β - α log(1 + 1/c)) + 1 + α (1/c - log(1 + 1/c)) + log c - H(Gamma(α, 1)), c = λβ"""
    (a, rate), (loc, b) = doubles(p, "concentration", "rate"), doubles(q, "loc", "scale")
    a, c, loc, b = together(a, rate * b, loc, b)
    log_m = torch.log1p(1.0 / c)
    entropy = 0.5 * (LOG_2PI_E + torch.log(a)) + gamma_entropy_rest(a)
    return rise(loc / b - a * log_m) + 1.0 + a * rise(log_m) + torch.log(c) - entropy


@closed_form(Uniform, Gumbel, source=_SOURCE)
def uniform_gumbel(p: Uniform, q: Gumbel) -> Tensor:
    """rise((μ - low)/β + log((1 - e^-w)/w)) + 1 + log(sinh(w/2)/(w/2)) - log w, w = (high - low)/β"""
    (low, high), (loc, b) = doubles(p, "low", "high"), doubles(q, "loc", "scale")
    w = (high - low) / b
    return rise((loc - low) / b + log1mexp(w) - torch.log(w)) + 1.0 + log_sinhc(w / 2.0) - torch.log(w)


@closed_form(Laplace, Gumbel, source=_SOURCE)
def laplace_gumbel(p: Laplace, q: Gumbel) -> Tensor:
    """rise(Δ - log(1 - r²)) - log(2r (1 - r²)), r = bp/β, Δ = (μq - μp)/β; +inf where r >= 1"""
    (m, s), (n, b) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
    infinite = s >= b
    r = torch.where(infinite, 0.5, s / b)
    log_rest = torch.log1p(-r * r)
    return infinite_where(
        infinite, rise(torch.where(infinite, 0.0, (n - m) / b) - log_rest) - torch.log(2.0 * r) - log_rest
    )
