"""Families of location, scale and shape against themselves."""

import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    Uniform,
    VonMises,
    Weibull,
)

from kullback.exact.registry import closed_form, doubles, infinite_where
from kullback.exact.shapes import together
from kullback.exact.special import EULER, bregman_integral, bregman_lgamma, bregman_power, log_ratio, rise

from .normal import LargeBatch, is_large, normal

_GIL = "Gil, Alajaji & Linder 2013"


@closed_form(Normal, Normal, source=_GIL)
def normal_normal(p: Normal, q: Normal) -> Tensor:
    """½ (Δ/σq)² + ½ (r² - 1 - log r²), r = σp/σq"""
    if is_large(p.loc, p.scale, q.loc, q.scale):
        value: Tensor = LargeBatch.apply(p.loc, p.scale, q.loc, q.scale)  # type: ignore[no-untyped-call]
        return value
    return normal(*doubles(p, "loc", "scale"), *doubles(q, "loc", "scale"))


@closed_form(LogNormal, LogNormal, source=_GIL)
def lognormal_lognormal(p: LogNormal, q: LogNormal) -> Tensor:
    """as Normal‖Normal of the logarithms"""
    return normal(*doubles(p, "loc", "scale"), *doubles(q, "loc", "scale"))


@closed_form(HalfNormal, HalfNormal, source=_GIL)
def halfnormal_halfnormal(p: HalfNormal, q: HalfNormal) -> Tensor:
    """½ (r² - 1 - log r²), r = σp/σq"""
    (s,), (t,) = doubles(p, "scale"), doubles(q, "scale")
    return 0.5 * rise(2.0 * log_ratio(s, t))


@closed_form(Laplace, Laplace, source=_GIL)
def laplace_laplace(p: Laplace, q: Laplace) -> Tensor:
    """rise(log r) + r (t + e^-t - 1), r = bp/bq, t = |Δ|/bp"""
    (m, b), (n, c) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
    return rise(log_ratio(b, c)) + b / c * rise(-(m - n).abs() / b)


@closed_form(Cauchy, Cauchy, source="Chyzak & Nielsen 2019")
def cauchy_cauchy(p: Cauchy, q: Cauchy) -> Tensor:
    """log(1 + ((γp - γq)² + Δ²) / (4 γp γq))"""
    (m, b), (n, c) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
    return torch.log1p(((b - c) ** 2 + (m - n) ** 2) / (4.0 * b * c))


@closed_form(HalfCauchy, HalfCauchy, source="Chyzak & Nielsen 2019, folded at 0")
def halfcauchy_halfcauchy(p: HalfCauchy, q: HalfCauchy) -> Tensor:
    """log(1 + (γp - γq)² / (4 γp γq))"""
    (b,), (c,) = doubles(p, "scale"), doubles(q, "scale")
    return torch.log1p((b - c) ** 2 / (4.0 * b * c))


def gumbel(rho: Tensor, y: Tensor) -> Tensor:
    """rise(y + log Γ(1+ρ)) + [log Γ(ρ) + γ (ρ - 1)], with ρ = βp/βq and y = (μq - μp)/βq.

    log Γ(1+ρ) is written (1-γ)(ρ-1) plus its Bregman divergence from 2, so that it keeps its digits near ρ = 1.
    """
    one = torch.ones_like(rho)
    log_gamma = (1.0 - EULER) * (rho - 1.0) + bregman_lgamma(1.0 + rho, 2.0 * one, rho - 1.0)
    return rise(y + log_gamma) + bregman_lgamma(rho, one)


@closed_form(Gumbel, Gumbel, source="Bauckhage 2014")
def gumbel_gumbel(p: Gumbel, q: Gumbel) -> Tensor:
    """rise(g) + log Γ(r) + γ (r - 1), r = βp/βq, g = (μq - μp)/βq + log Γ(1 + r)"""
    (m, b), (n, c) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
    m, b, n, c = together(m, b, n, c)
    return gumbel(b / c, (n - m) / c)


@closed_form(Weibull, Weibull, source="Bauckhage 2013")
def weibull_weibull(p: Weibull, q: Weibull) -> Tensor:
    """as Gumbel‖Gumbel of -log x: r = kq/kp, g = kq log(λp/λq) + log Γ(1 + r)"""
    (s, k), (t, h) = doubles(p, "scale", "concentration"), doubles(q, "scale", "concentration")
    s, k, t, h = together(s, k, t, h)
    return gumbel(h / k, h * log_ratio(s, t))


def _same_power(p: Kumaraswamy, q: Kumaraswamy) -> bool:
    a, b = p.concentration1, q.concentration1
    return not (a.requires_grad or b.requires_grad) and bool((a == b).all())


@closed_form(Kumaraswamy, Kumaraswamy, source="-log(1 - x^a) is exponential: Jones 2009", applies=_same_power)
def kumaraswamy_kumaraswamy(p: Kumaraswamy, q: Kumaraswamy) -> Tensor:
    """rise(log(bq/bp)), for equal a; else by quadrature"""
    (b,), (d,) = doubles(p, "concentration0"), doubles(q, "concentration0")
    return rise(log_ratio(d, b))


@closed_form(Pareto, Pareto, source=_GIL)
def pareto_pareto(p: Pareto, q: Pareto) -> Tensor:
    """rise(log(αq/αp)) + αq log(sp/sq), +inf where sp < sq"""
    (s, a), (t, b) = doubles(p, "scale", "alpha"), doubles(q, "scale", "alpha")
    outside = s < t
    return infinite_where(outside, rise(log_ratio(b, a)) + b * log_ratio(torch.where(outside, t, s), t))


@closed_form(Uniform, Uniform, source="Cover & Thomas 2006, chapter 8")
def uniform_uniform(p: Uniform, q: Uniform) -> Tensor:
    """log((bq - aq)/(bp - ap)), +inf where [ap, bp] is not inside [aq, bq]"""
    (a, b), (c, d) = doubles(p, "low", "high"), doubles(q, "low", "high")
    outside = (a < c) | (b > d)
    width = torch.where(outside, 1.0, b - a)
    return infinite_where(outside, torch.log1p(torch.where(outside, 0.0, (a - c) + (d - b)) / width))


# log I0(κ) = κ - ½ log(2πκ) + Σ_k c_k κ^-(k+1), for κ >= 30
_LOG_I0 = (1 / 8, 1 / 16, 25 / 384, 13 / 128, 1073 / 5120, 103 / 192, 375733 / 229376, 23797 / 4096)


def _mean_length(k: Tensor) -> Tensor:
    """A(κ) = I1(κ)/I0(κ)."""
    ratio: Tensor = torch.special.i1e(k) / torch.special.i0e(k)
    return ratio


def _mean_length_slope(k: Tensor) -> Tensor:
    """A'(κ) = 1 - A/κ - A², with its limit 1/2 - 3κ²/16 + 5κ⁴/96 at small κ."""
    small = k < 1e-3
    u = torch.where(small, 1.0, k)
    a = _mean_length(u)
    t = torch.where(small, k, 0.0) ** 2
    return torch.where(small, 0.5 - 3.0 / 16.0 * t + 5.0 / 96.0 * t * t, 1.0 - a / u - a * a)


def _bregman_log_i0(x: Tensor, y: Tensor) -> Tensor:
    """log I0(x) - log I0(y) - (x - y) A(y) >= 0."""
    large = torch.minimum(x, y) >= 50.0
    u, v = torch.where(large, x, 50.0), torch.where(large, y, 50.0)
    tail = 0.5 * rise(log_ratio(u, v))
    for k, coefficient in enumerate(_LOG_I0):
        tail = tail + coefficient * bregman_power(u, v, k + 1, u - v)
    near = ~large & ((x - y).abs() < 1.0)
    close = bregman_integral(_mean_length_slope, torch.where(near, x, 1.0), torch.where(near, y, 1.0))
    u, v = torch.where(large | near, 1.0, x), torch.where(large | near, 2.0, y)
    far = torch.log(torch.special.i0e(u)) - torch.log(torch.special.i0e(v)) + (u - v) * (1.0 - _mean_length(v))
    return torch.where(large, tail, torch.where(near, close, far))


@closed_form(VonMises, VonMises, source="Kitagawa & Rowley 2022")
def vonmises_vonmises(p: VonMises, q: VonMises) -> Tensor:
    """[log I0(κq) - log I0(κp) - (κq - κp) A(κp)] + 2 κq A(κp) sin²(Δ/2), A = I1/I0"""
    (m, k), (n, h) = doubles(p, "loc", "concentration"), doubles(q, "loc", "concentration")
    m, k, n, h = together(m, k, n, h)
    return _bregman_log_i0(h, k) + 2.0 * h * _mean_length(k) * torch.sin((m - n) / 2.0) ** 2


@closed_form(Normal, Normal, quantity="log_affinity", source=_GIL)
def normal_affinity(p: Normal, q: Normal, order: float) -> Tensor:
    """-½ a(1-a) Δ²/s² - ½ log(s² / (σp^2(1-a) σq^2a)), s² = (1-a) σp² + a σq²; +inf where s² <= 0"""
    (m, b), (n, c) = doubles(p, "loc", "scale"), doubles(q, "loc", "scale")
    unit = torch.maximum(b, c)  # squares of widths may over- and underflow
    mixed = (1.0 - order) * (b / unit) ** 2 + order * (c / unit) ** 2
    outside = mixed <= 0.0
    ratio = torch.where(outside, 0.0, 2.0 * log_ratio(c, b))
    square = ((m - n) / unit) ** 2 / torch.where(outside, 1.0, mixed)
    return infinite_where(outside, -0.5 * order * (1.0 - order) * square - 0.5 * jensen_gap(order, ratio))


def jensen_gap(order: float, y: Tensor) -> Tensor:
    """log(1 - a + a e^y) - a y, >= 0 for a in [0, 1], flat at y = 0."""
    near, far = y.abs() < 1.0, y > 100.0
    grown = torch.log1p(order * torch.expm1(torch.where(far, 0.0, y)))
    if order > 0.0:  # where e^y might overflow; for a below 0 the logarithm has no real value there
        grown = torch.where(far, y + torch.log(order + (1.0 - order) * torch.exp(-y.clamp(min=0.0))), grown)
    t = torch.where(near, y, 0.0)
    close = order * rise(t) - rise(torch.log1p(order * torch.expm1(t)))
    return torch.where(near, close, grown - order * y)
