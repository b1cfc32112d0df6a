"""Beta, continuous Bernoulli, Uniform and Pareto against each other, Exponential and Gamma.

+inf where p's support is not inside q's; the direct sums here are of pairs that are never equal, or that go through
a non-negative divergence first.
"""

import torch
from torch import Tensor
from torch.distributions import Beta, ContinuousBernoulli, Exponential, Gamma, Pareto, Uniform

from kullback.exact.registry import closed_form, doubles, infinite_where, logits
from kullback.exact.shapes import together
from kullback.exact.special import bregman_integral, log_ratio, log_sinhc, rise

from .gamma import beta_parameters, dirichlet
from .moments import half_mean, mean_log, mean_slope, moments

_DIRECT = "entropy of p and its moments: Michalowicz, Nichols & Bucholtz 2013"
_CB = "Loaiza-Ganem & Cunningham 2019"


def continuous_bernoulli(x: Tensor, y: Tensor) -> Tensor:
    """KL of the continuous Bernoulli with η = x to that with η = y: a Bregman divergence of A(η) = log((e^η - 1)/η).

    Near: ∫ (1-t) Δ² A''. Both far out on one side: A(η) = max(η, 0) - log|η| up to e^-40, which leaves
    rise(log(y/x)). Else the plain difference, which is then above 1e-3.
    """
    x, y = together(x, y)
    outer = (x * y > 0) & (torch.minimum(x.abs(), y.abs()) > 40.0)
    u, v = torch.where(outer, x.abs(), 1.0), torch.where(outer, y.abs(), 1.0)
    far_out = rise(log_ratio(v, u))
    near = ~outer & ((x - y).abs() < 2.0)
    close = bregman_integral(mean_slope, torch.where(near, y, 1.0), torch.where(near, x, 1.0))
    u, v = torch.where(outer | near, 0.0, x), torch.where(outer | near, 3.0, y)
    plain = log_sinhc(v / 2.0) - log_sinhc(u / 2.0) - (v - u) * half_mean(u)
    return torch.where(outer, far_out, torch.where(near, close, plain))


@closed_form(ContinuousBernoulli, ContinuousBernoulli, source=_CB)
def cb_cb(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    """A(ηq) - A(ηp) - (ηq - ηp) A'(ηp), A(η) = log((e^η - 1)/η)"""
    return continuous_bernoulli(logits(p), logits(q))


def _to_uniform(value: Tensor, q: Uniform) -> Tensor:
    """KL to U(0,1) and on to the wider U(low, high)."""
    low, high = doubles(q, "low", "high")
    outside = (low > 0.0) | (high < 1.0)
    return infinite_where(outside, value + torch.log1p(torch.where(outside, 0.0, (high - 1.0) - low)))


@closed_form(ContinuousBernoulli, Uniform, source=_CB)
def cb_uniform(p: ContinuousBernoulli, q: Uniform) -> Tensor:
    """KL(p‖U(0,1)) + log(high - low), +inf where [0, 1] is not inside"""
    eta = logits(p)
    return _to_uniform(continuous_bernoulli(eta, torch.zeros_like(eta)), q)


@closed_form(ContinuousBernoulli, Exponential, source=_DIRECT)
def cb_exponential(p: ContinuousBernoulli, q: Exponential) -> Tensor:
    """-H(p) - log λ + λ mean"""
    return _to_exponential(p, q)


def _to_exponential(p: Beta | ContinuousBernoulli | Pareto | Uniform, q: Exponential) -> Tensor:
    """-H(p) - log λ + λ mean = rise(log(λ mean)) + [1 + log mean - H(p)]."""
    m, (rate,) = moments(p), doubles(q, "rate")
    infinite = torch.isinf(m.mean)
    mean = torch.where(infinite, 1.0, m.mean)
    return infinite_where(infinite, rise(torch.log(rate * mean)) + (1.0 + torch.log(mean) - m.entropy))


def _gamma_rest(q: Gamma, mean_log_x: Tensor, mean: Tensor) -> Tensor:
    """-E log q."""
    a, rate = doubles(q, "concentration", "rate")
    return torch.lgamma(a) - a * torch.log(rate) - (a - 1.0) * mean_log_x + rate * mean


@closed_form(Beta, ContinuousBernoulli, source=_DIRECT)
def beta_cb(p: Beta, q: ContinuousBernoulli) -> Tensor:
    """KL(p‖U(0,1)) + log(sinh(η/2)/(η/2)) + η (½ - mean)"""
    a, b = beta_parameters(p).unbind(-1)
    eta = logits(q)
    return _to_standard(p) + log_sinhc(eta / 2.0) + eta * (0.5 * (b - a) / (a + b))


def _to_standard(p: Beta) -> Tensor:
    parameters = beta_parameters(p)
    return dirichlet(parameters, torch.ones_like(parameters))


@closed_form(Beta, Uniform, source=_DIRECT)
def beta_uniform(p: Beta, q: Uniform) -> Tensor:
    """KL(p‖Beta(1,1)) + log(high - low), +inf where [0, 1] is not inside"""
    return _to_uniform(_to_standard(p), q)


@closed_form(Beta, Exponential, source=_DIRECT)
def beta_exponential(p: Beta, q: Exponential) -> Tensor:
    """-H(p) - log λ + λ mean"""
    return _to_exponential(p, q)


@closed_form(Beta, Gamma, source=_DIRECT)
def beta_gamma(p: Beta, q: Gamma) -> Tensor:
    """-H(p) + log Γ(α) - α log β - (α - 1)(ψ(a) - ψ(a + b)) + β a/(a + b)"""
    a, b = beta_parameters(p).unbind(-1)
    m = moments(p)
    return _gamma_rest(q, torch.digamma(a) - torch.digamma(a + b), m.mean) - m.entropy


@closed_form(Pareto, Exponential, source=_DIRECT)
def pareto_exponential(p: Pareto, q: Exponential) -> Tensor:
    """-H(p) - log λ + λ mean; +inf where α <= 1"""
    return _to_exponential(p, q)


@closed_form(Pareto, Gamma, source=_DIRECT)
def pareto_gamma(p: Pareto, q: Gamma) -> Tensor:
    """-H(p) + log Γ(a) - a log b - (a - 1)(log s + 1/α) + b mean; +inf where α <= 1"""
    (scale, alpha), m = doubles(p, "scale", "alpha"), moments(p)
    infinite = torch.isinf(m.mean)
    mean = torch.where(infinite, 1.0, m.mean)
    return infinite_where(infinite, _gamma_rest(q, torch.log(scale) + 1.0 / alpha, mean) - m.entropy)


@closed_form(Uniform, Beta, source=_DIRECT)
def uniform_beta(p: Uniform, q: Beta) -> Tensor:
    """-log(high - low) + log B(a, b) - (a - 1) E log x - (b - 1) E log(1 - x), +inf outside [0, 1]"""
    low, high = doubles(p, "low", "high")
    a, b = beta_parameters(q).unbind(-1)
    outside = (low < 0.0) | (high > 1.0)
    low, high = torch.where(outside, 0.0, low), torch.where(outside, 1.0, high)
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    means = (a - 1.0) * mean_log(low, high) + (b - 1.0) * mean_log(1.0 - high, 1.0 - low)
    part = log_beta - means - torch.log(high - low)
    return infinite_where(outside, part)


@closed_form(Uniform, ContinuousBernoulli, source=_CB)
def uniform_cb(p: Uniform, q: ContinuousBernoulli) -> Tensor:
    """-log(high - low) + log(sinh(η/2)/(η/2)) + η (1 - low - high)/2, +inf outside [0, 1]"""
    (low, high), eta = doubles(p, "low", "high"), logits(q)
    outside = (low < 0.0) | (high > 1.0)
    low, high = torch.where(outside, 0.0, low), torch.where(outside, 1.0, high)
    return infinite_where(
        outside, log_sinhc(eta / 2.0) + 0.5 * eta * ((1.0 - high) - low) - torch.log1p(-((1.0 - high) + low))
    )


def _inside_positive(p: Uniform) -> tuple[Tensor, Tensor, Tensor]:
    low, high = doubles(p, "low", "high")
    outside = low < 0.0
    return outside, torch.where(outside, 1.0, low), torch.where(outside, 2.0, high)


@closed_form(Uniform, Exponential, source=_DIRECT)
def uniform_exponential(p: Uniform, q: Exponential) -> Tensor:
    """-log(high - low) - log λ + λ (low + high)/2, +inf where low < 0"""
    (outside, low, high), (rate,) = _inside_positive(p), doubles(q, "rate")
    return infinite_where(outside, rate * (low + high) / 2.0 - torch.log(rate * (high - low)))


@closed_form(Uniform, Gamma, source=_DIRECT)
def uniform_gamma(p: Uniform, q: Gamma) -> Tensor:
    """-log(high - low) + log Γ(a) - a log b - (a - 1) E log x + b (low + high)/2, +inf where low < 0"""
    outside, low, high = _inside_positive(p)
    value = _gamma_rest(q, mean_log(low, high), (low + high) / 2.0) - torch.log(high - low)
    return infinite_where(outside, value)


@closed_form(Uniform, Pareto, source=_DIRECT)
def uniform_pareto(p: Uniform, q: Pareto) -> Tensor:
    """-log(high - low) - log α - α log s + (α + 1) E log x, +inf where low < s"""
    (low, high), (scale, alpha) = doubles(p, "low", "high"), doubles(q, "scale", "alpha")
    outside = low < scale
    low, high = torch.where(outside, scale, low), torch.where(outside, 2.0 * scale, high)
    tail = alpha * (mean_log(low, high) - torch.log(scale)) + mean_log(low, high)
    return infinite_where(outside, tail - torch.log(alpha) - torch.log(high - low))
